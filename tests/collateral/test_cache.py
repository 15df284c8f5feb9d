"""Fetched collateral is kept until its next update, and anything doubtful is fetched again."""

import hashlib
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.collateral import Collateral
from attestkit.collateral.cache import CollateralCache, Key
from attestkit.errors import CollateralError, ConfigError, UsageError
from tests.collateral.services import BASE, COLLATERAL, NOW, PKI, QUOTE, TCB, Service
from tests.keeping import Keeping

KEY: Final[Key] = (BASE, "tdx", "A77E57000000", "platform")
START: Final = datetime.fromtimestamp(NOW, timezone.utc)
END: Final = COLLATERAL.valid_until
NEWER: Final = PKI.collateral(NOW + 86400)
SECOND: Final = timedelta(seconds=1)
ROOT: Final = Path(__file__).resolve().parents[2]


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        """Return the time."""
        return self.now


def entries(folder: Path) -> list[Path]:
    """Return the files of a cache."""
    return sorted(folder.glob("*.json"))


Make = Callable[..., CollateralCache]


@pytest.fixture
def clock() -> Clock:
    """Return the clock of the test's caches."""
    return Clock()


@pytest.fixture(params=["memory", "folder"])
def cache(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> CollateralCache:
    """Return a cache of each kind."""
    return CollateralCache(None if request.param == "memory" else tmp_path / "c", clock=clock)


def test_what_was_put_comes_back(cache: CollateralCache) -> None:
    """The same value, under its key alone."""
    assert cache.get(KEY) is None
    cache.put(KEY, COLLATERAL)
    assert cache.get(KEY) == COLLATERAL
    for place in range(4):
        other = (*KEY[:place], "x", *KEY[place + 1 :])
        assert cache.get(other) is None
    assert cache.get(KEY[:3]) is None
    cache.put(KEY, NEWER)
    assert cache.get(KEY) == NEWER


def test_it_ends_with_the_next_update(cache: CollateralCache, clock: Clock) -> None:
    """The last second before the next update is good, the next update is not."""
    cache.put(KEY, COLLATERAL)
    clock.now = END - SECOND
    assert cache.get(KEY) == COLLATERAL
    clock.now = END
    assert cache.get(KEY) is None


def test_it_ends_with_its_age(cache: CollateralCache, clock: Clock) -> None:
    """A caller who wants it fresher gets it as long as it is."""
    cache.put(KEY, COLLATERAL)
    clock.now = START + timedelta(hours=1)
    assert cache.get(KEY, max_age=timedelta(hours=1)) == COLLATERAL
    assert cache.get(KEY, max_age=timedelta(minutes=59)) is None
    assert cache.get(KEY) == COLLATERAL


def test_the_caches_own_age_holds_too(clock: Clock) -> None:
    """The smaller of both ages counts."""
    cache = CollateralCache(None, clock=clock, max_age=timedelta(hours=2))
    cache.put(KEY, COLLATERAL)
    clock.now = START + timedelta(hours=1)
    assert cache.get(KEY, max_age=timedelta(days=9)) == COLLATERAL
    assert cache.get(KEY, max_age=timedelta(minutes=1)) is None
    clock.now = START + timedelta(hours=2) + SECOND
    assert cache.get(KEY, max_age=timedelta(days=9)) is None


@pytest.mark.parametrize("when", [START - SECOND, COLLATERAL.valid_from - SECOND])
def test_what_comes_from_the_future_does_not_count(
    cache: CollateralCache, clock: Clock, when: datetime
) -> None:
    """After a clock was set back nobody knows how old an entry is."""
    cache.put(KEY, COLLATERAL)
    clock.now = when
    assert cache.get(KEY) is None


def test_another_process_finds_it(tmp_path: Path, clock: Clock) -> None:
    """A second cache on the folder has it, and what the first fetched later."""
    first, second = (CollateralCache(tmp_path, clock=clock) for _ in range(2))
    first.put(KEY, COLLATERAL)
    assert second.get(KEY) == COLLATERAL
    clock.now += timedelta(days=1)
    first.put(KEY, NEWER)
    assert second.get(KEY, max_age=timedelta(hours=1)) == NEWER


def test_folder_and_files_are_the_owners_alone(tmp_path: Path, clock: Clock) -> None:
    """Made with mode 0700 or closed, its files 0600, and nothing else is left in it."""
    made, found = tmp_path / "a" / "b", tmp_path / "c"
    found.mkdir(mode=0o755)
    for folder in (made, found):
        CollateralCache(folder, clock=clock).put(KEY, COLLATERAL)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        [path] = folder.iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its place, or somebody else's folder, is refused at once."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "x"):
        with pytest.raises(ConfigError, match="file"):
            CollateralCache(folder)
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    with pytest.raises(ConfigError, match=r"belongs to user \d+, not to us"):
        CollateralCache(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        ("http://h/../../etc", "tdx", "../../../x", "platform"),
        ("a\0b", "/", "", "."),
        ("é\ud800", "\n", "x" * 5000, ""),
        ("a", "b,c"),
        ("a", "b", "c"),
    ],
)
def test_no_part_of_a_key_becomes_part_of_a_path(tmp_path: Path, clock: Clock, key: Key) -> None:
    """File names are hashes, different for each key."""
    cache = CollateralCache(tmp_path / "c", clock=clock)
    cache.put(KEY, NEWER)
    cache.put(key, COLLATERAL)
    assert CollateralCache(tmp_path / "c", clock=clock).get(key) == COLLATERAL
    assert len(entries(tmp_path / "c")) == len(list((tmp_path / "c").iterdir())) == 2
    assert all(len(path.stem) == 64 for path in entries(tmp_path / "c"))
    assert list(tmp_path.iterdir()) == [tmp_path / "c"]


def sealed(values: object) -> bytes:
    """Return a file with the right checksum."""
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def test_a_file_is_what_the_module_says(tmp_path: Path, clock: Clock) -> None:
    """The first line is the checksum of the JSON behind it."""
    CollateralCache(tmp_path, clock=clock).put(KEY, COLLATERAL)
    [path] = entries(tmp_path)
    checksum, text = path.read_bytes().split(b"\n", 1)
    assert checksum.decode() == hashlib.sha256(text).hexdigest()
    values = json.loads(text)
    assert (values["version"], values["key"]) == (1, list(KEY))
    assert datetime.fromisoformat(values["fetched_at"]) == START
    assert Collateral.from_json(json.dumps(values["collateral"])) == COLLATERAL


GOOD: Final[dict[str, Any]] = {
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
        sealed(GOOD)[:-1],
        sealed(GOOD)[1:],
        sealed(GOOD).replace(b"UpToDate", b"Revoked!"),
        sealed(b""),
        sealed(b"[]"),
        sealed(b"\xff"),
        sealed({}),
        sealed({**GOOD, "version": 2}),
        sealed({**GOOD, "key": [*KEY[:3], "processor"]}),
        sealed({**GOOD, "key": None}),
        sealed({**GOOD, "fetched_at": "yesterday"}),
        sealed({**GOOD, "fetched_at": START.replace(tzinfo=None).isoformat()}),
        sealed({**GOOD, "fetched_at": 5}),
        sealed({**GOOD, "collateral": None}),
        sealed({**GOOD, "collateral": {**GOOD["collateral"], "pck_crl": "00"}}),
        sealed({**GOOD, "collateral": {**GOOD["collateral"], "tcb_info": "{}"}}),
        sealed(b"[" * 100_000),
        b"\xff" * ((16 << 20) + 1),
    ],
)
def test_a_file_that_is_not_ours_is_as_none_and_replaced(
    tmp_path: Path, clock: Clock, content: bytes
) -> None:
    """Torn, damaged, foreign: never an error, never half used."""
    cache = CollateralCache(tmp_path, clock=clock)
    cache.put(KEY, COLLATERAL)
    [path] = entries(tmp_path)
    path.write_bytes(content)
    fresh = CollateralCache(tmp_path, clock=clock)
    assert fresh.get(KEY) is None
    fresh.put(KEY, COLLATERAL)
    assert CollateralCache(tmp_path, clock=clock).get(KEY) == COLLATERAL
    path.write_bytes(sealed(GOOD))  # what the cases differ from
    assert CollateralCache(tmp_path, clock=clock).get(KEY) == COLLATERAL


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_as_none(tmp_path: Path, clock: Clock, kind: str) -> None:
    """A link is not followed, a pipe not waited for; neither keeps a fetch from its value."""
    folder = tmp_path / "c"
    cache = CollateralCache(folder, clock=clock)
    cache.put(KEY, COLLATERAL)
    [path] = entries(folder)
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
    assert (tmp_path / "real").read_bytes() == sealed(GOOD)


def test_a_full_disk_is_told_and_no_error(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The value was fetched and is good; the log says that it cannot be kept."""

    def fail(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    cache = CollateralCache(tmp_path, clock=clock)
    cache.put(KEY, COLLATERAL)
    assert "No space left" in caplog.text
    assert cache.get(KEY) == COLLATERAL
    assert not list(tmp_path.iterdir())


def test_the_number_of_entries_is_bounded(tmp_path: Path, clock: Clock) -> None:
    """The oldest go first, in memory and on disk; other people's files stay."""
    (tmp_path / "notes.json").write_text("mine")
    (tmp_path / ".hidden").write_text("mine")
    cache = CollateralCache(tmp_path, clock=clock, limit=3)
    keys = [(BASE, "tdx", str(number), "platform") for number in range(6)]
    for age, key in enumerate(keys):
        cache.put(key, COLLATERAL)
        for path in entries(tmp_path):  # file times have no clock that a test could set
            if path.stat().st_mtime > 1000:
                os.utime(path, (age, age))
    fresh = CollateralCache(tmp_path, clock=clock, limit=3)
    for of in (cache, fresh):
        assert [of.get(key) is not None for key in keys] == [False] * 3 + [True] * 3
    assert (tmp_path / "notes.json").read_text() == "mine"
    assert (tmp_path / ".hidden").read_text() == "mine"


def test_memory_alone_is_bounded(clock: Clock) -> None:
    """What was put last stays; putting again makes it the last."""
    cache = CollateralCache(None, clock=clock, limit=2)
    keys = [(str(number),) for number in range(3)]
    for key in (keys[0], keys[1], keys[0], keys[2]):
        cache.put(key, COLLATERAL)
    assert [cache.get(key) is not None for key in keys] == [True, False, True]


KILLED: Final = """
import os, signal, sys
from datetime import datetime, timezone
sys.path.insert(0, sys.argv[1])
from attestkit.collateral.cache import CollateralCache
from tests.collateral.services import COLLATERAL, NOW
cache = CollateralCache(sys.argv[2], clock=lambda: datetime.fromtimestamp(NOW, timezone.utc))
os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)
cache.put(tuple(sys.argv[3:]), COLLATERAL)
"""


def run(script: str, *arguments: str) -> int:
    """Run a script in a process of its own; return how it ended."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT), *arguments], check=False, timeout=60
    )
    return done.returncode


def test_a_killed_writer_leaves_nothing_that_counts(tmp_path: Path, clock: Clock) -> None:
    """The file it was writing is ignored; the old entry is whole; strays do not pile up."""
    cache = CollateralCache(tmp_path, clock=clock)
    cache.put(KEY, COLLATERAL)
    assert run(KILLED, str(tmp_path), *KEY) == -signal.SIGKILL
    assert run(KILLED, str(tmp_path), "another") == -signal.SIGKILL
    strays = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert len(strays) == 2
    fresh = CollateralCache(tmp_path, clock=clock)
    assert fresh.get(KEY) == COLLATERAL
    assert fresh.get(("another",)) is None
    for number in range(40):
        (tmp_path / f"{strays[0].name}{number}").touch()
    fresh.put(("another",), COLLATERAL)
    assert len([path for path in tmp_path.iterdir() if path.name.startswith(".")]) == 16
    assert len(entries(tmp_path)) == 2


BUSY: Final = """
import sys
from datetime import datetime, timezone
sys.path.insert(0, sys.argv[1])
from attestkit.collateral.cache import CollateralCache
from tests.collateral.services import COLLATERAL, NOW
now = lambda: datetime.fromtimestamp(NOW, timezone.utc)
for number in range(30):
    cache = CollateralCache(sys.argv[2], clock=now, limit=3)
    key = (str(number % 4),)
    assert cache.get(key) in (None, COLLATERAL)
    cache.put(key, COLLATERAL)
    assert CollateralCache(sys.argv[2], clock=now, limit=3).get(key) in (None, COLLATERAL)
"""


def test_two_processes_share_a_folder(tmp_path: Path, clock: Clock) -> None:
    """Both write, read and prune the same four keys; neither fails or sees a part of an entry."""
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(run(BUSY, str(tmp_path)))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0]
    assert len(entries(tmp_path)) <= 4
    cache = CollateralCache(tmp_path, clock=clock)
    assert any(cache.get((str(number),)) for number in range(4))


def test_threads_share_a_cache(clock: Clock) -> None:
    """Any number of threads on a full cache: no error, and only whole values."""
    cache = CollateralCache(None, clock=clock, limit=2)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        with Keeping(failures):
            for turn in range(50):
                key = (str((number + turn) % 5),)
                cache.put(key, COLLATERAL)
                assert cache.get(key) in {None, COLLATERAL}

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_it_pickles_without_what_it_holds(tmp_path: Path, clock: Clock) -> None:
    """Another process gets the folder, not the memory."""
    for folder, found in ((None, None), (tmp_path, COLLATERAL)):
        cache = CollateralCache(folder, clock=clock, max_age=timedelta(hours=1), limit=7)
        cache.put(KEY, COLLATERAL)
        again = pickle.loads(pickle.dumps(cache))
        assert again.get(KEY) == found
        assert (again._limit, again._max_age) == (7, timedelta(hours=1))


def test_what_cannot_be_asked_for(clock: Clock) -> None:
    """A negative age and a cache without room are usage errors."""
    with pytest.raises(UsageError, match="max_age"):
        CollateralCache(None, max_age=-SECOND)
    with pytest.raises(UsageError, match="max_age"):
        CollateralCache(None, clock=clock).get(KEY, max_age=-SECOND)
    with pytest.raises(UsageError, match="one entry at least"):
        CollateralCache(None, limit=0)


def test_a_fetch_asks_the_cache_first(cache: CollateralCache, clock: Clock) -> None:
    """One fetch serves until the next update, or until somebody wants it fresher."""
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


def test_what_has_ended_is_not_used_when_the_fetch_fails(
    cache: CollateralCache, clock: Clock
) -> None:
    """Fail closed: an old entry does not take the place of an answer."""
    service = Service()
    Collateral.fetch(QUOTE, BASE, getter=service, cache=cache)
    service.changes[TCB] = lambda response: response._replace(status=503)
    assert Collateral.fetch(QUOTE, BASE, getter=service, cache=cache) == COLLATERAL
    clock.now += SECOND
    with pytest.raises(CollateralError, match="answered 503"):
        Collateral.fetch(QUOTE, BASE, getter=service, cache=cache, max_age=timedelta())
    clock.now = END
    with pytest.raises(CollateralError, match="answered 503"):
        Collateral.fetch(QUOTE, BASE, getter=service, cache=cache)


@settings(deadline=None, max_examples=60)  # machines are busy
@given(st.integers(0, 20_000), st.integers(1, 255), st.booleans())
def test_any_changed_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory,
    at: int,
    flip: int,
    resealed: bool,
) -> None:
    """A damaged file is as none; one with a right checksum is as none, or a value."""
    folder = tmp_path_factory.mktemp("cache")
    cache = CollateralCache(folder, clock=lambda: START)
    cache.put(KEY, COLLATERAL)
    [path] = entries(folder)
    content = bytearray(path.read_bytes())
    content[at % len(content)] ^= flip
    path.write_bytes(sealed(bytes(content[65:])) if resealed else content)
    found = CollateralCache(folder, clock=lambda: START).get(KEY)
    assert found is None or (resealed and isinstance(found, Collateral))
