"""Many at once on one driver, which makes one quote at a time."""

import multiprocessing
import os
import threading

from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.quote import Quote
from tests.rigs.kernel.guest.machine import MadeUpTd, entries

THREADS = 8
PROCESSES = 4
EACH = 3


def _ask_and_compare(backend: ConfigfsTsm) -> None:
    for _ in range(EACH):
        asked = os.urandom(64)
        assert Quote.parse(backend.get_quote(asked)).report_data == asked


def _process() -> None:
    _ask_and_compare(ConfigfsTsm())


def test_all_are_served(td: MadeUpTd) -> None:
    """8 threads on one backend and 4 processes: each gets its own quotes, and nothing is left."""
    processes = [multiprocessing.get_context("fork").Process(target=_process) for _ in range(4)]
    for process in processes:
        process.start()
    backend = ConfigfsTsm()
    served: list[int] = []

    def ask(number: int) -> None:
        _ask_and_compare(backend)
        served.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for process in processes:
        process.join(60)
    assert sorted(served) == list(range(THREADS))
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    assert entries() == []
    assert td.get("quote_calls") == EACH * (THREADS + PROCESSES)
