"""Fixtures of the Attester's tests: a machine, and its host-shared directory."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from attestkit.attester import Attester
from tests.machines.tees import FakeTd, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return the hardware of a freshly booted TD."""
    folder = tmp_path / "machine"
    folder.mkdir()
    return Machine(folder)


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the host-shared directory, which is empty."""
    folder = tmp_path / "host-shared"
    folder.mkdir()
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(folder))
    return folder


@pytest.fixture
def start(machine: Machine, shared: Path) -> Iterator[Callable[[], Attester]]:
    """Return a function that starts a process on the machine; all end with the test."""
    assert shared.is_dir()
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Attester(FakeTd(machine)))
