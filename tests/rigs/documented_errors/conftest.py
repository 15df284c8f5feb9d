"""Fixtures of the tables: the machines of a test module, and a rebooted one for each test."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.rigs.emulator import Emulator, emulator


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Emulator]]:
    """Return a function that gives each of MACHINES, started for the first test that needs it."""
    running: dict[str, Emulator] = {}
    with ExitStack() as stack:

        def get(name: str) -> Emulator:
            if name not in running:
                options = request.module.MACHINES[name]
                running[name] = stack.enter_context(emulator(**options))
            return running[name]

        yield get
        for name, machine in running.items():
            assert machine.errors.read_text() == "", name


@pytest.fixture
def machine(fleet: Callable[[str], Emulator], request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """Return a rebooted machine; a leftover entry or descriptor fails the test."""
    machine = fleet(request.param)
    machine.clear_faults()
    machine.reboot()
    before = sorted(Path("/proc/self/fd").iterdir())
    yield machine
    machine.clear_faults()
    assert machine.entries() == []
    assert sorted(Path("/proc/self/fd").iterdir()) == before
