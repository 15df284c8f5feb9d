"""Fixtures of the tables: the machines of a test module, and a rebooted one for each test."""

from collections.abc import Iterator

import pytest

from tests.rigs.documented_errors.cases import Fleet, fresh_machine
from tests.rigs.emulator import Emulator


@pytest.fixture(scope="module")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Run the MACHINES of a test module."""
    with Fleet.of(request.module.MACHINES) as machines:
        yield machines


@pytest.fixture
def machine(fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """Return a rebooted machine; a leftover entry or descriptor fails the test."""
    with fresh_machine(fleet[request.param]) as machine:
        yield machine
