"""Concurrent requests on one driver, which makes one quote at a time."""

import multiprocessing
import os
import threading

from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.quote import Quote
from tests.rigs.kernel.guest.machine import SimulatedTd, list_entries

THREADS = 8
PROCESSES = 4
EACH = 3


def _request_and_compare(backend: ConfigfsTsm) -> None:
    for _ in range(EACH):
        report_data = os.urandom(64)
        assert Quote.parse(backend.get_quote(report_data)).report_data == report_data


def _process() -> None:
    _request_and_compare(ConfigfsTsm())


def test_threads_and_processes_get_their_own_quotes(td: SimulatedTd) -> None:
    """8 threads on one backend and 4 processes leave no entries."""
    processes = [multiprocessing.get_context("fork").Process(target=_process) for _ in range(4)]
    for process in processes:
        process.start()
    backend = ConfigfsTsm()
    served: list[int] = []

    def run(number: int) -> None:
        _request_and_compare(backend)
        served.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for process in processes:
        process.join(60)
    assert sorted(served) == list(range(THREADS))
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    assert list_entries() == []
    # A read that ends with EINTR or EBUSY is repeated, as on a busy machine; that is another call.
    repeated = td.get("quote_calls") - EACH * (THREADS + PROCESSES)
    assert 0 <= repeated <= THREADS + PROCESSES
