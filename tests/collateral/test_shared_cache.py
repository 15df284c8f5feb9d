"""Tests of a cache folder shared by processes: each collateral is fetched once."""

import contextlib
import fcntl
import os
import signal
import threading
from collections import Counter
from datetime import datetime, timedelta, timezone
from functools import partial
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Final

import pytest

from attestkit.collateral.cache import CollateralCache
from attestkit.collateral.caching_source import CollateralSource
from tests.collateral.http_server import CreateServer, create_pccs_server
from tests.collateral.services import COLLATERAL, NOW, QUOTE, Service

KEY: Final = ("http://pccs", "tdx", "00" * 6, "platform")


SPAWN: Final = get_context("spawn")


def find_collateral(
    folder: Path, url: str, now: float, ready: Barrier, found: SimpleQueue[tuple[bool, str]]
) -> None:
    """Look up the collateral of QUOTE when all processes are ready."""
    clock = partial(datetime.fromtimestamp, now, timezone.utc)
    cache = CollateralCache(folder, max_age=timedelta(minutes=1), clock=clock)
    source = CollateralSource(url, cache=cache)
    ready.wait(60)
    lookup = source.find(QUOTE)
    found.put((lookup.cached, lookup.collateral.to_json()))


def run_fetchers(count: int, folder: Path, url: str, now: float) -> list[tuple[bool, str]]:
    """Look up the same collateral in `count` processes at once; return their results."""
    ready, found = SPAWN.Barrier(count), SPAWN.SimpleQueue()
    arguments = (folder, url, now, ready, found)
    processes = [SPAWN.Process(target=find_collateral, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert {process.exitcode for process in processes} == {0}
    return [found.get() for _ in processes]


def test_processes_fetch_collateral_once(tmp_path: Path, create_server: CreateServer) -> None:
    """Four processes with an empty cache make one fetch and get equal collateral."""
    pccs = create_pccs_server(create_server, Service())
    found = run_fetchers(4, tmp_path, pccs.url, NOW)
    assert sorted(cached for cached, _ in found) == [False, True, True, True]
    assert {text for _, text in found} == {COLLATERAL.to_json()}
    assert len(pccs.requests) == len(set(pccs.requests)) == 4


@pytest.mark.slow
def test_processes_refetch_expired_entry_once(tmp_path: Path, create_server: CreateServer) -> None:
    """Three processes with an expired entry make one fetch."""
    pccs = create_pccs_server(create_server, Service())
    found = run_fetchers(1, tmp_path, pccs.url, NOW)
    assert [cached for cached, _ in found] == [False]
    found = run_fetchers(3, tmp_path, pccs.url, NOW + 3600)
    assert sorted(cached for cached, _ in found) == [False, True, True]
    assert set(Counter(pccs.requests).values()) == {2}


def hold_lock(folder: Path, holding: Event) -> None:
    """Hold the lock until the process is killed."""
    with CollateralCache(folder).fetch_lock(KEY) as acquired:
        assert acquired
        holding.set()
        signal.pause()


def test_fetch_lock_is_released_by_death_of_holder(tmp_path: Path) -> None:
    """A live holder is waited for until the timeout; a dead one releases the lock at once."""
    cache, holding = CollateralCache(tmp_path), SPAWN.Event()
    holder = SPAWN.Process(target=hold_lock, args=(tmp_path, holding))
    holder.start()
    assert holding.wait(60)
    with cache.fetch_lock(KEY, seconds=0.05) as acquired:
        assert not acquired
    holder.kill()
    holder.join()
    with cache.fetch_lock(KEY, seconds=0) as acquired:
        assert acquired


def test_fetch_lock_is_released_by_exception(tmp_path: Path) -> None:
    """A failed fetch releases the lock."""
    cache = CollateralCache(tmp_path)
    with contextlib.suppress(ZeroDivisionError), cache.fetch_lock(KEY):
        raise ZeroDivisionError
    with cache.fetch_lock(KEY, seconds=0) as acquired:
        assert acquired


def test_fetch_lock_in_memory_is_always_acquired() -> None:
    """A cache in memory has no other process to lock against."""
    cache = CollateralCache(None)
    with cache.fetch_lock(KEY, seconds=0) as acquired, cache.fetch_lock(KEY, seconds=0) as again:
        assert acquired
        assert again


def test_fetch_lock_files_are_bounded_and_private(tmp_path: Path) -> None:
    """There are at most 256 lock files, of mode 0600, and `put` keeps them."""
    now = datetime.fromtimestamp(NOW, timezone.utc)
    cache = CollateralCache(tmp_path, clock=lambda: now, limit=1)
    for number in range(1000):
        with cache.fetch_lock((str(number),)) as acquired:
            assert acquired
    cache.put(KEY, COLLATERAL)
    locks = list(tmp_path.glob(".*.lock"))
    assert 200 < len(locks) <= 256
    assert {path.stat().st_mode & 0o777 for path in locks} == {0o600}


def test_fetch_lock_names_are_salted_per_folder(tmp_path: Path) -> None:
    """Lock names depend on a secret salt of the folder, so that keys cannot be made to collide."""

    def locks(folder: Path, *numbers: int) -> set[str]:
        for number in numbers:
            with CollateralCache(folder).fetch_lock((str(number),)) as acquired:
                assert acquired
        return {path.name for path in folder.glob(".*.lock")}

    found = [locks(tmp_path / name, *range(16)) for name in ("a", "b")]
    assert found[0] != found[1]
    assert locks(tmp_path / "a", *range(16)) == found[0]
    salts = [tmp_path / name / ".salt" for name in ("a", "b")]
    assert {(path.stat().st_size, path.stat().st_mode & 0o777) for path in salts} == {(16, 0o600)}
    assert salts[0].read_bytes() != salts[1].read_bytes()


@pytest.mark.parametrize("size", range(16))
def test_fetch_lock_replaces_truncated_salt(tmp_path: Path, size: int) -> None:
    """A truncated salt is replaced, once its lock is released."""
    salt = tmp_path / ".salt"
    salt.write_bytes(bytes(size))
    cache = CollateralCache(tmp_path)
    with salt.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with cache.fetch_lock(KEY, seconds=0) as acquired:
            assert not acquired
    assert salt.stat().st_size == size
    with cache.fetch_lock(KEY, seconds=0) as acquired:
        assert acquired
    assert salt.stat().st_size == 16


def test_fetch_lock_salt_is_created_once(tmp_path: Path) -> None:
    """Of concurrent first users one creates the salt, and only one holds the lock."""
    holders, largest = [], []

    def hold() -> None:
        with CollateralCache(tmp_path).fetch_lock(KEY) as acquired:
            assert acquired
            holders.append(1)
            largest.append(len(holders))
            holders.pop()

    threads = [threading.Thread(target=hold) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert largest == [1] * 8
    assert len(list(tmp_path.glob(".*.lock"))) == 1


@pytest.mark.parametrize("pattern", [".*.lock", ".salt"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_fetch_lock_path_not_regular_file_is_ignored(
    tmp_path: Path, kind: str, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A link, pipe or folder at the path is not opened, and a warning is logged."""
    folder = tmp_path / "cache"
    cache = CollateralCache(folder)
    with cache.fetch_lock(KEY):
        [lock] = folder.glob(pattern)
    lock.unlink()
    target = tmp_path / "target"
    if kind == "link":
        lock.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    with cache.fetch_lock(KEY) as acquired:
        assert not acquired
    assert not target.exists()
    assert "cannot lock fetches" in caplog.text


def test_fetch_lock_is_per_key(tmp_path: Path) -> None:
    """Locks of different keys are independent, also in one process."""
    cache = CollateralCache(tmp_path)
    (tmp_path / ".salt").write_bytes(bytes(16))  # with one salt of 256 both keys would share a lock
    with (
        cache.fetch_lock(KEY, seconds=0) as acquired,
        cache.fetch_lock(("another",), seconds=0) as other,
    ):
        assert acquired
        assert other
        [held] = [path for path in tmp_path.glob(".*.lock") if not _free(path)][:1]
        assert held.exists()
        with CollateralCache(tmp_path).fetch_lock(KEY, seconds=0) as second:
            assert not second


def _free(path: Path) -> bool:
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_fetch_lock_waiter_finds_collateral_of_holder(tmp_path: Path) -> None:
    """A waiter acquires the lock as soon as it is released, and finds the cached collateral."""
    now = datetime.fromtimestamp(NOW, timezone.utc) + timedelta(seconds=1)
    first, second = (CollateralCache(tmp_path, clock=lambda: now) for _ in range(2))
    waiting, found = threading.Event(), []

    def wait() -> None:
        waiting.set()
        with second.fetch_lock(KEY) as acquired:
            found.append((acquired, second.get(KEY)))

    thread = threading.Thread(target=wait)
    with first.fetch_lock(KEY):
        thread.start()
        waiting.wait()
        first.put(KEY, COLLATERAL)
    thread.join()
    assert found == [(True, COLLATERAL)]
