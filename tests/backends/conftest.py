"""Fixtures of the backends' tests."""

from pathlib import Path

import pytest


@pytest.fixture
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a socket, short enough for sun_path."""
    return tmp_path_factory.mktemp("q") / "s"
