"""Fixtures of the attempts."""

from collections.abc import Iterator

import pytest

from attestkit.testing import AttestedServer


@pytest.fixture(scope="session")
def proven_server() -> Iterator[AttestedServer]:
    """Provide one server for all attempts, which restore it."""
    with AttestedServer() as server:
        yield server
