"""Tests of a cache folder shared by processes: each collateral is fetched once."""

import contextlib
import fcntl
import os
import threading
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

import pytest

from attestkit.collateral.cache import CollateralCache
from tests.collateral.http_server import CreateServer, create_pccs_server
from tests.collateral.processes import SPAWN, find_collateral, hold_lock, run_processes
from tests.collateral.services import COLLATERAL, NOW, QUOTE, Service

START: Final = datetime.fromtimestamp(NOW, timezone.utc)
KEY: Final = ("http://pccs", "tdx", "00" * 6, "platform")


def run_fetchers(count: int, folder: Path, url: str, now: datetime) -> list[tuple[bool, str]]:
    """Look up the same collateral in `count` processes at once; return their results."""
    ready, found = SPAWN.Barrier(count), SPAWN.SimpleQueue()
    assert run_processes(count, find_collateral, folder, url, now, QUOTE, (ready, found)) == {0}
    return [found.get() for _ in range(count)]


def test_processes_fetch_collateral_once(tmp_path: Path, create_server: CreateServer) -> None:
    """Processes with an empty cache make one fetch and get equal collateral."""
    pccs = create_pccs_server(create_server, Service())
    found = run_fetchers(2, tmp_path, pccs.url, START)
    assert sorted(cached for cached, _ in found) == [False, True]
    assert {text for _, text in found} == {COLLATERAL.to_json()}
    assert len(pccs.requests) == len(set(pccs.requests)) == 4


@pytest.mark.slow
def test_processes_refetch_expired_entry_once(tmp_path: Path, create_server: CreateServer) -> None:
    """Three processes with an expired entry make one fetch."""
    pccs = create_pccs_server(create_server, Service())
    found = run_fetchers(1, tmp_path, pccs.url, START)
    assert [cached for cached, _ in found] == [False]
    found = run_fetchers(3, tmp_path, pccs.url, START + timedelta(hours=1))
    assert sorted(cached for cached, _ in found) == [False, True, True]
    assert set(Counter(pccs.requests).values()) == {2}


def test_fetch_lock_is_released_by_death_of_holder(tmp_path: Path) -> None:
    """A live holder is waited for until the timeout; a dead one releases the lock at once."""
    cache, holding = CollateralCache(tmp_path), SPAWN.Event()
    holder = SPAWN.Process(target=hold_lock, args=(tmp_path, KEY, holding))
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


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # the child makes few calls
def test_fetch_lock_is_released_although_a_child_has_it_open(tmp_path: Path) -> None:
    """A process that was forked during a fetch inherits the open file of the lock, not the lock."""
    cache = CollateralCache(tmp_path)
    reader, writer = os.pipe()
    with cache.fetch_lock(KEY):
        if (child := os.fork()) == 0:
            os.close(writer)
            os.read(reader, 1)  # until the parent closes the pipe, or ends
            os._exit(0)
    with cache.fetch_lock(KEY, seconds=0) as acquired:
        os.close(writer)
    os.close(reader)
    os.waitpid(child, 0)
    assert acquired


def test_fetch_lock_in_memory_is_always_acquired() -> None:
    """A cache in memory has no other process to lock against."""
    cache = CollateralCache(None)
    with cache.fetch_lock(KEY, seconds=0) as acquired, cache.fetch_lock(KEY, seconds=0) as again:
        assert acquired
        assert again


def test_fetch_lock_files_are_bounded_and_private(tmp_path: Path) -> None:
    """There are at most 256 lock files, of mode 0600, and `put` keeps them."""
    cache = CollateralCache(tmp_path, clock=lambda: START, limit=1)
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


@pytest.mark.parametrize("size", [0, 15])
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
        with CollateralCache(tmp_path).fetch_lock(KEY, seconds=0) as second:
            assert not second


def test_fetch_lock_waiter_finds_collateral_of_holder(tmp_path: Path) -> None:
    """A waiter acquires the lock as soon as it is released, and finds the cached collateral."""
    now = START + timedelta(seconds=1)
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
