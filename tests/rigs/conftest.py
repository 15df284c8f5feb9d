"""Rigs that several files of tests share."""

from collections.abc import Iterator

import pytest

from tests.rigs.docker_engine import DockerEngine, missing, running_engine


@pytest.fixture(scope="session")
def docker() -> Iterator[DockerEngine]:
    """A real container engine of our own; a test that stops it starts it again."""
    if missing():
        pytest.skip(missing())
    with running_engine() as engine:
        yield engine
