"""Rigs shared by several test files."""

from collections.abc import Iterator

import pytest

from tests.rigs.docker.engine import DockerEngine, missing_for_docker, running_engine


@pytest.fixture(scope="session")
def docker() -> Iterator[DockerEngine]:
    """Run a separate container engine; a test that stops it must start it again."""
    if missing_for_docker():
        pytest.skip(missing_for_docker())
    with running_engine() as engine:
        yield engine
