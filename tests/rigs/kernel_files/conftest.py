"""A machine with all features, shared by the tests of plain file calls."""

from collections.abc import Iterator

import pytest

from tests.rigs.emulator import Emulator, emulator


@pytest.fixture(scope="package")
def shared() -> Iterator[Emulator]:
    """Run a TDX guest."""
    with emulator() as machine:
        yield machine
        assert machine.errors.read_text() == ""


@pytest.fixture
def machine(shared: Emulator) -> Emulator:
    """Return the rebooted guest without faults."""
    shared.clear_faults()
    shared.reboot()
    return shared
