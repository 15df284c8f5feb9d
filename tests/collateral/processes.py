"""Functions that run in other processes; the module imports little, so that they start fast."""

import os
import signal
from collections.abc import Callable
from datetime import datetime, timedelta
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Final
from unittest.mock import patch

from attestkit.collateral import Collateral
from attestkit.collateral.cache import CollateralCache, Key
from attestkit.collateral.caching_source import CollateralSource
from attestkit.quote import Quote

SPAWN: Final = get_context("spawn")


def run_processes(count: int, target: Callable[..., None], *arguments: object) -> set[int | None]:
    """Run a function in `count` processes at once, and return their exit codes."""
    processes = [SPAWN.Process(target=target, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return {process.exitcode for process in processes}


def put_and_be_killed(folder: Path, key: Key, collateral: Collateral, now: datetime) -> None:
    """Store an entry, in a process that is killed before the file is complete."""
    with patch("os.fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL)):
        CollateralCache(folder, clock=lambda: now).put(key, collateral)


def put_and_get(folder: Path, collateral: Collateral, now: datetime) -> None:
    """Write, read and prune a few keys many times."""
    for number in range(30):
        key = (str(number % 4),)
        for _ in range(2):
            cache = CollateralCache(folder, clock=lambda: now, limit=3)
            assert cache.get(key) in {None, collateral}
            cache.put(key, collateral)


def find_collateral(
    folder: Path,
    url: str,
    now: datetime,
    quote: Quote,
    meeting: tuple[Barrier, SimpleQueue[tuple[bool, str]]],
) -> None:
    """Look up the collateral of a quote when all processes have met, and report the result."""
    cache = CollateralCache(folder, max_age=timedelta(minutes=1), clock=lambda: now)
    ready, found = meeting
    ready.wait(60)
    lookup = CollateralSource(url, cache=cache).find(quote)
    found.put((lookup.cached, lookup.collateral.to_json()))


def hold_lock(folder: Path, key: Key, holding: Event) -> None:
    """Hold the lock of a key until the process is killed."""
    with CollateralCache(folder).fetch_lock(key) as acquired:
        assert acquired
        holding.set()
        signal.pause()
