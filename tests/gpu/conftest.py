"""A stub of NVIDIA's driver, shared by the tests of a file."""

from collections.abc import Iterator

import pytest

from tests.emulator.nvml.stub_programs import Driver, running


@pytest.fixture(scope="module")
def module_driver() -> Iterator[Driver]:
    """A driver with two GPUs, and one program for all tests of a file."""
    with running() as driver:
        yield driver


@pytest.fixture
def driver(module_driver: Driver) -> Driver:
    """The driver in its original state."""
    module_driver.reset()
    return module_driver
