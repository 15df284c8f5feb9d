"""Fairness: concurrent threads and processes on one TEE are served in turn."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from attestkit.attester import Attester
from tests.machines.tees import FakeTd, Machine
from tests.serve.server import environment

RIG = Path(__file__).with_name("turns_rig.py")
ROUNDS = 25


def run_clients(folder: Path, clients: list[int]) -> list[list[int]]:
    """Run processes with these numbers of threads; return the overtakes of each."""
    (folder / "log").mkdir()
    Machine(folder)
    with contextlib.ExitStack() as stack:
        programs = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(RIG), str(folder), str(threads), str(ROUNDS)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment(),
                    text=True,
                )
            )
            for threads in clients
        ]
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
        return [json.loads(program.communicate(timeout=100)[0]) for program in programs]


@pytest.mark.parametrize(
    "clients",
    [
        pytest.param([8], id="8 threads"),
        pytest.param([1, 1, 1, 1], id="4 programs", marks=pytest.mark.slow),
        pytest.param([8, 1, 1, 1], id="both"),
    ],
)
def test_concurrent_clients_do_not_starve(tmp_path: Path, clients: list[int]) -> None:
    """A request waits for few more turns than there are other clients.

    So it takes at most twice the time of as many uncontended requests, for 99 in 100.
    """
    found = run_clients(tmp_path, clients)
    assert [len(overtaken) for overtaken in found] == [threads * ROUNDS for threads in clients]
    every = sorted(overtaken for program in found for overtaken in program)
    assert every[int(len(every) * 0.99)] <= 2 * sum(clients)
    assert every[len(every) // 2] <= sum(clients)


def test_close_closes_the_queues_files(tmp_path: Path) -> None:
    """No descriptor is leaked."""
    before = sorted(path.name for path in Path("/proc/self/fd").iterdir())
    tee = Attester(FakeTd(Machine(tmp_path)))
    tee.emit_event("a", b"")
    tee.evidence_source.quote_and_log(bytes(64))
    assert len(list(Path("/proc/self/fd").iterdir())) > len(before)
    tee.close()
    assert sorted(path.name for path in Path("/proc/self/fd").iterdir()) == before
