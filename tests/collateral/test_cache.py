"""Tests of CollateralCache: entries are kept until they expire, and damaged ones are ignored."""

import hashlib
import json
import os
import pickle
import signal
import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.collateral import Collateral
from attestkit.collateral.cache import CollateralCache, Key
from attestkit.errors import CollateralError, ConfigError, UsageError
from tests.collateral.processes import put_and_be_killed, put_and_get, run_processes
from tests.collateral.services import BASE, COLLATERAL, NOW, PKI, QUOTE, TCB, Service
from tests.raising import raises

KEY: Final[Key] = (BASE, "tdx", "507757000000", "platform")
START: Final = datetime.fromtimestamp(NOW, timezone.utc)
END: Final = COLLATERAL.valid_until
NEWER: Final = PKI.collateral(NOW + 86400)
SECOND: Final = timedelta(seconds=1)


class Clock:
    """A manual clock."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now


def list_entries(folder: Path) -> list[Path]:
    """Return the entry files of a cache."""
    return sorted(folder.glob("*.json"))


@pytest.fixture
def clock() -> Clock:
    """Return the clock of the test's caches."""
    return Clock()


@pytest.fixture(params=["memory", "folder"])
def cache(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> CollateralCache:
    """Return a cache of each kind."""
    return CollateralCache(None if request.param == "memory" else tmp_path / "c", clock=clock)


def test_cache_returns_value_by_key(cache: CollateralCache) -> None:
    """An entry is found by its exact key only."""
    assert cache.get(KEY) is None
    cache.put(KEY, COLLATERAL)
    assert cache.get(KEY) == COLLATERAL
    for index in range(4):
        other = (*KEY[:index], "x", *KEY[index + 1 :])
        assert cache.get(other) is None
    assert cache.get(KEY[:3]) is None
    cache.put(KEY, NEWER)
    assert cache.get(KEY) == NEWER


def test_cache_entry_expires_at_next_update(cache: CollateralCache, clock: Clock) -> None:
    """An entry is valid until, but not including, its nextUpdate."""
    cache.put(KEY, COLLATERAL)
    clock.now = END - SECOND
    assert cache.get(KEY) == COLLATERAL
    clock.now = END
    assert cache.get(KEY) is None


def test_cache_get_max_age(cache: CollateralCache, clock: Clock) -> None:
    """`max_age` of a call limits the age of an entry."""
    cache.put(KEY, COLLATERAL)
    clock.now = START + timedelta(hours=1)
    assert cache.get(KEY, max_age=timedelta(hours=1)) == COLLATERAL
    assert cache.get(KEY, max_age=timedelta(minutes=59)) is None
    assert cache.get(KEY) == COLLATERAL


def test_cache_smaller_max_age_applies(clock: Clock) -> None:
    """The smaller `max_age` of cache and call applies."""
    cache = CollateralCache(None, clock=clock, max_age=timedelta(hours=2))
    cache.put(KEY, COLLATERAL)
    clock.now = START + timedelta(hours=1)
    assert cache.get(KEY, max_age=timedelta(days=9)) == COLLATERAL
    assert cache.get(KEY, max_age=timedelta(minutes=1)) is None
    clock.now = START + timedelta(hours=2) + SECOND
    assert cache.get(KEY, max_age=timedelta(days=9)) is None


@pytest.mark.parametrize("when", [START - SECOND, COLLATERAL.valid_from - SECOND])
def test_cache_entry_from_future_is_ignored(
    cache: CollateralCache, clock: Clock, when: datetime
) -> None:
    """After the clock was set back, entries from the future are ignored."""
    cache.put(KEY, COLLATERAL)
    clock.now = when
    assert cache.get(KEY) is None


def test_cache_folder_is_shared(tmp_path: Path, clock: Clock) -> None:
    """A second cache on the folder finds the entries of the first."""
    first, second = (CollateralCache(tmp_path, clock=clock) for _ in range(2))
    first.put(KEY, COLLATERAL)
    assert second.get(KEY) == COLLATERAL
    clock.now += timedelta(days=1)
    first.put(KEY, NEWER)
    assert second.get(KEY, max_age=timedelta(hours=1)) == NEWER


def test_cache_files_are_private(tmp_path: Path, clock: Clock) -> None:
    """The folder has mode 0700, its files 0600, and no other files are left."""
    created, existing = tmp_path / "a" / "b", tmp_path / "c"
    existing.mkdir(mode=0o755)
    for folder in (created, existing):
        CollateralCache(folder, clock=clock).put(KEY, COLLATERAL)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        [path] = folder.iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_cache_unusable_folder_raises_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file instead of the folder, or another user's folder, raises ConfigError."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "x"):
        with raises(ConfigError, "unwritable"):
            CollateralCache(folder)
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with raises(ConfigError, "permissions"):
        CollateralCache(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        ("http://h/../../etc", "tdx", "../../../x", "platform"),
        ("a\0b", "/", "", "."),
        ("é\ud7ff", "\n", "x" * 5000, ""),
        ("a", "b,c"),
        ("a", "b", "c"),
    ],
)
def test_cache_file_name_is_hash_of_key(tmp_path: Path, clock: Clock, key: Key) -> None:
    """File names are hashes, different for each key."""
    cache = CollateralCache(tmp_path / "c", clock=clock)
    cache.put(KEY, NEWER)
    cache.put(key, COLLATERAL)
    assert CollateralCache(tmp_path / "c", clock=clock).get(key) == COLLATERAL
    assert len(list_entries(tmp_path / "c")) == len(list((tmp_path / "c").iterdir())) == 2
    assert all(len(path.stem) == 64 for path in list_entries(tmp_path / "c"))
    assert list(tmp_path.iterdir()) == [tmp_path / "c"]


def add_checksum(values: object) -> bytes:
    """Return an entry file with a valid checksum."""
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def test_cache_file_format(tmp_path: Path, clock: Clock) -> None:
    """The first line is the checksum of the JSON that follows."""
    CollateralCache(tmp_path, clock=clock).put(KEY, COLLATERAL)
    [path] = list_entries(tmp_path)
    checksum, text = path.read_bytes().split(b"\n", 1)
    assert checksum.decode() == hashlib.sha256(text).hexdigest()
    values = json.loads(text)
    assert (values["version"], values["key"]) == (1, list(KEY))
    assert datetime.fromisoformat(values["fetched_at"]) == START
    assert Collateral.from_json(json.dumps(values["collateral"])) == COLLATERAL


VALID_ENTRY: Final[dict[str, Any]] = {
    "version": 1,
    "key": list(KEY),
    "fetched_at": START.isoformat(),
    "collateral": json.loads(COLLATERAL.to_json()),
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        add_checksum(VALID_ENTRY)[:-1],
        add_checksum(VALID_ENTRY).replace(b"UpToDate", b"Revoked!"),
        add_checksum(b""),
        add_checksum(b"\xff"),
        add_checksum({**VALID_ENTRY, "version": 2}),
        add_checksum({**VALID_ENTRY, "key": [*KEY[:3], "processor"]}),
        add_checksum({**VALID_ENTRY, "fetched_at": "yesterday"}),
        add_checksum({**VALID_ENTRY, "fetched_at": START.replace(tzinfo=None).isoformat()}),
        add_checksum({**VALID_ENTRY, "collateral": {**VALID_ENTRY["collateral"], "pck_crl": "00"}}),
        add_checksum(
            {**VALID_ENTRY, "collateral": {**VALID_ENTRY["collateral"], "tcb_info": "{}"}}
        ),
        add_checksum(b"[" * 100_000),
        b"\xff" * ((16 << 20) + 1),
    ],
)
def test_cache_invalid_file_is_ignored_and_replaced(
    tmp_path: Path, clock: Clock, content: bytes
) -> None:
    """A truncated, damaged or unknown file is ignored without an error, and replaced."""
    cache = CollateralCache(tmp_path, clock=clock)
    cache.put(KEY, COLLATERAL)
    [path] = list_entries(tmp_path)
    path.write_bytes(content)
    fresh = CollateralCache(tmp_path, clock=clock)
    assert fresh.get(KEY) is None
    fresh.put(KEY, COLLATERAL)
    assert CollateralCache(tmp_path, clock=clock).get(KEY) == COLLATERAL
    path.write_bytes(add_checksum(VALID_ENTRY))  # the unmodified entry
    assert CollateralCache(tmp_path, clock=clock).get(KEY) == COLLATERAL


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_cache_path_not_regular_file_is_replaced(tmp_path: Path, clock: Clock, kind: str) -> None:
    """A link is not followed, a pipe not read, and both are replaced."""
    folder = tmp_path / "c"
    cache = CollateralCache(folder, clock=clock)
    cache.put(KEY, COLLATERAL)
    [path] = list_entries(folder)
    path.rename(tmp_path / "real")
    if kind == "link":
        path.symlink_to(tmp_path / "real")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    fresh = CollateralCache(folder, clock=clock)
    assert fresh.get(KEY) is None
    fresh.put(KEY, NEWER)
    assert fresh.get(KEY) == NEWER
    assert (tmp_path / "real").read_bytes() == add_checksum(VALID_ENTRY)


def test_cache_full_disk_is_logged(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed write is logged, and the entry stays in memory."""

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    cache = CollateralCache(tmp_path, clock=clock)
    cache.put(KEY, COLLATERAL)
    assert "No space left" in caplog.text
    assert cache.get(KEY) == COLLATERAL
    assert not list(tmp_path.iterdir())


def test_cache_removes_oldest_entries(tmp_path: Path, clock: Clock) -> None:
    """The oldest entries are removed first, in memory and on disk; other files are kept."""
    (tmp_path / "notes.json").write_text("mine")
    (tmp_path / ".hidden").write_text("mine")
    cache = CollateralCache(tmp_path, clock=clock, limit=3)
    keys = [(BASE, "tdx", str(number), "platform") for number in range(6)]
    for age, key in enumerate(keys):
        cache.put(key, COLLATERAL)
        for path in list_entries(tmp_path):  # file times cannot be set by the test's clock
            if path.stat().st_mtime > 1000:
                os.utime(path, (age, age))
    fresh = CollateralCache(tmp_path, clock=clock, limit=3)
    for each in (cache, fresh):
        assert [each.get(key) is not None for key in keys] == [False] * 3 + [True] * 3
    assert (tmp_path / "notes.json").read_text() == "mine"
    assert (tmp_path / ".hidden").read_text() == "mine"


def test_cache_in_memory_removes_oldest_entry(clock: Clock) -> None:
    """The entry that was put first is removed first; putting it again renews it."""
    cache = CollateralCache(None, clock=clock, limit=2)
    keys = [(str(number),) for number in range(3)]
    for key in (keys[0], keys[1], keys[0], keys[2]):
        cache.put(key, COLLATERAL)
    assert [cache.get(key) is not None for key in keys] == [True, False, True]


def test_cache_killed_writer_leaves_old_entry(tmp_path: Path, clock: Clock) -> None:
    """Temporary files of a killed writer are ignored and removed, and the old entry is intact."""
    cache = CollateralCache(tmp_path, clock=clock)
    cache.put(KEY, COLLATERAL)
    assert run_processes(2, put_and_be_killed, tmp_path, KEY, COLLATERAL, START) == {
        -signal.SIGKILL
    }
    strays = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert len(strays) == 2
    fresh = CollateralCache(tmp_path, clock=clock)
    assert fresh.get(KEY) == COLLATERAL
    for number in range(40):
        (tmp_path / f"{strays[0].name}{number}").touch()
    fresh.put(("another",), COLLATERAL)
    assert len([path for path in tmp_path.iterdir() if path.name.startswith(".")]) == 16
    assert len(list_entries(tmp_path)) == 2


@pytest.mark.slow
def test_cache_concurrent_processes(tmp_path: Path, clock: Clock) -> None:
    """Two processes that write, read and prune the same keys see whole entries only."""
    assert run_processes(2, put_and_get, tmp_path, COLLATERAL, START) == {0}
    assert len(list_entries(tmp_path)) <= 4
    cache = CollateralCache(tmp_path, clock=clock)
    assert any(cache.get((str(number),)) for number in range(4))


def test_cache_pickle_keeps_folder_only(tmp_path: Path, clock: Clock) -> None:
    """An unpickled cache has the folder, but not the memory."""
    for folder, existing in ((None, None), (tmp_path, COLLATERAL)):
        cache = CollateralCache(folder, clock=clock, max_age=timedelta(hours=1), limit=7)
        cache.put(KEY, COLLATERAL)
        copy = pickle.loads(pickle.dumps(cache))
        assert copy.get(KEY) == existing
        assert (copy._limit, copy._max_age) == (7, timedelta(hours=1))


def test_cache_invalid_argument_raises_usage_error(clock: Clock) -> None:
    """A negative age or a limit below 1 raises UsageError."""
    with raises(UsageError, "out_of_range"):
        CollateralCache(None, max_age=-SECOND)
    with raises(UsageError, "out_of_range"):
        CollateralCache(None, clock=clock).get(KEY, max_age=-SECOND)
    with raises(UsageError, "out_of_range"):
        CollateralCache(None, limit=0)


def test_fetch_uses_cache(cache: CollateralCache, clock: Clock) -> None:
    """A cached value is used until its nextUpdate, or the caller's `max_age`."""
    service = Service()

    def fetch(max_age: timedelta | None = None) -> Collateral:
        return Collateral.fetch(QUOTE, BASE, getter=service, cache=cache, max_age=max_age)

    assert fetch() == fetch() == COLLATERAL
    assert len(service.urls) == 4
    clock.now += timedelta(hours=2)
    fetch(timedelta(hours=2))
    assert len(service.urls) == 4
    fetch(timedelta(hours=1))
    assert len(service.urls) == 8
    fetch(timedelta(hours=1))
    assert len(service.urls) == 8
    Collateral.fetch(QUOTE, f"{BASE}/sgx/certification/v4/", getter=service, cache=cache)
    assert len(service.urls) == 8
    Collateral.fetch(QUOTE, "http://other", getter=service, cache=cache)
    assert len(service.urls) == 12


def test_fetch_failure_does_not_use_expired_entry(cache: CollateralCache, clock: Clock) -> None:
    """An expired entry is not used if the fetch fails."""
    service = Service()
    Collateral.fetch(QUOTE, BASE, getter=service, cache=cache)
    service.changes[TCB] = lambda response: response._replace(status=503)
    assert Collateral.fetch(QUOTE, BASE, getter=service, cache=cache) == COLLATERAL
    clock.now += SECOND
    with raises(CollateralError, "fetch_failed"):
        Collateral.fetch(QUOTE, BASE, getter=service, cache=cache, max_age=timedelta())
    clock.now = END
    with raises(CollateralError, "fetch_failed"):
        Collateral.fetch(QUOTE, BASE, getter=service, cache=cache)
