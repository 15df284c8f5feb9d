"""The longest tests of a run are started first, one in each process."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("xdist")
from tests.runner.scheduling import LONGEST, SHARE, LongestFirst

ROOT = Path(__file__).resolve().parents[2]
QUICK = [f"tests/test_quick.py::test_{number}" for number in range(400)]


class Process:
    """A process of pytest-xdist that notes which tests it is given."""

    shutting_down = False
    gateway = SimpleNamespace(id="gw")

    def __init__(self) -> None:
        self.given: list[str] = []
        self.collection: list[str] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        """Take more tests."""
        self.given += [self.collection[at] for at in indices]

    def shutdown(self) -> None:
        """Learn that no more tests come."""
        self.shutting_down = True


@pytest.fixture
def config(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> pytest.Config:
    """Return settings of a run in three processes."""
    monkeypatch.setattr(pytestconfig.option, "tx", ["3*popen"], raising=False)
    return pytestconfig


def run(config: pytest.Config, collection: list[str]) -> tuple[list[Process], Any]:
    """Return three processes after the start of a run, and its scheduler."""
    processes: Any = [Process() for _ in range(3)]
    scheduler: Any = LongestFirst(config)
    for process in processes:
        process.collection = collection
        scheduler.add_node(process)
        scheduler.add_node_collection(process, collection)
    scheduler.schedule()
    return processes, scheduler


def finish(scheduler: Any, processes: list[Process]) -> list[str]:
    """Let the processes run all tests, in turn, and return them."""
    while any(pending := list(scheduler.node2pending.values())):
        for process, tests in zip(processes, pending, strict=True):
            if tests:
                scheduler.mark_test_complete(process, tests[0], 1)
    return sorted(test for process in processes for test in process.given)


def test_longest_tests_exist() -> None:
    """Each name is a file of tests, or a test in one."""
    for name in LONGEST:
        file, _, test = name.partition("::")
        assert f"\ndef {test or 'test_'}" in (ROOT / file).read_text(), name


def test_longest_tests_start_first(config: pytest.Config) -> None:
    """Each process starts with a long test; the next long ones go to those that are done first."""
    long = [
        f"{name}[{number}]" if "::" in name else f"{name}::test_{number}"
        for name in LONGEST
        for number in range(2)
    ]
    processes, scheduler = run(config, [*QUICK, *reversed(long)])
    assert [LONGEST.index(one.given[0].partition("::")[0]) for one in processes] == [0, 0, 1]
    assert [one.given[1:] for one in processes] == [[test] for test in QUICK[:3]]
    scheduler.mark_test_complete(processes[2], scheduler.node2pending[processes[2]][0], 60)
    assert processes[2].given[2].startswith(LONGEST[1])
    assert finish(scheduler, processes) == sorted([*QUICK, *long])


def test_runs_with_long_tests_give_small_shares(config: pytest.Config) -> None:
    """No process waits for another one that has many tests left."""
    processes, scheduler = run(config, [f"{LONGEST[0]}::test", *QUICK])
    assert max(map(len, scheduler.node2pending.values())) <= SHARE
    assert finish(scheduler, processes) == sorted([f"{LONGEST[0]}::test", *QUICK])


def test_other_runs_are_distributed_as_by_default(config: pytest.Config) -> None:
    """Without a long test, each process begins with a quarter of an equal share."""
    processes, _ = run(config, QUICK)
    assert [one.given for one in processes] == [QUICK[at : at + 33] for at in (0, 33, 66)]
