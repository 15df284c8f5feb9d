"""Collateral that was fetched, kept until its next update: in memory, and in a folder if wanted.

What is kept is public and believed by nobody: a Verifier checks its signatures at every use. Still
the folder is its owner's alone, for whoever writes there can hold a verifier back to older words of
Intel's that are valid, or keep it from work.

A file has the SHA-256 of what follows in its first line, then JSON: version, key, when it was
fetched, and the nine fields. Anything that is not such a file for the key it is looked up by counts
as not there, and is replaced.

Beside what was fetched is kept what has passed a verification, so that nothing older takes its
place later (`caching_source`): files of the same form called `.kept`, which outlast their next
update.

Processes that want the same at once fetch it in turn, so that the second finds what the first has
fetched: each takes the lock of `.NN.lock`, NN by the key, 256 at most. The kernel drops a lock with
its holder, however that ends; for one that hangs nobody waits longer than `TURN_SECONDS`. A key is
chosen by strangers, so `.salt`, 16 random bytes, goes before it: nobody outside can choose names
that wait for each other, or that of somebody's.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from attestkit._system.atomic_file import replace_file
from attestkit._system.untrusted_files import close_folder, make_folder, open_regular, read_regular
from attestkit.collateral.intel_collateral import Collateral
from attestkit.collateral.merge import issued
from attestkit.collateral.parts import json_object
from attestkit.errors import CollateralError, ConfigError, UsageError

__all__ = ["TURN_SECONDS", "CollateralCache", "Key"]

Key: TypeAlias = tuple[str, ...]
"""Whose collateral: the service's URL, the TEE, and what names the platform to the service."""

TURN_SECONDS: Final = 20.0
"""For which another process may be at the fetch of the same; after them it is fetched beside it."""

_POLL_SECONDS: Final = 0.02
_SALT_SIZE: Final = 16  # bytes
_VERSION: Final = 1
_FILE_LIMIT: Final = 16 << 20  # bytes; real ones are about 40 kB
_STRAYS: Final = 16  # files of writers that were killed, or are at work
_ENTRY: Final = re.compile(r"[0-9a-f]{64}\.json")
_KEPT: Final = re.compile(r"[0-9a-f]{64}\.kept")
_STRAY: Final = re.compile(r"\.[0-9a-f]{64}\.(?:json|kept)\..+")
_logger = logging.getLogger("attestkit.collateral")


def _now() -> datetime:
    return datetime.now(timezone.utc)


class _Entry(NamedTuple):
    collateral: Collateral
    fetched_at: datetime
    valid_from: datetime
    valid_until: datetime

    def holds(self, now: datetime, max_age: timedelta | None) -> bool:
        """Tell whether it can still be used; one from the future cannot, the clock was wrong."""
        if not (max(self.fetched_at, self.valid_from) <= now < self.valid_until):
            return False
        return max_age is None or now - self.fetched_at <= max_age


class CollateralCache:
    """Collateral by whose it is; used by any number of threads, and processes on one folder.

    It pickles without what it holds in memory, if its clock does.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        *,
        max_age: timedelta | None = None,
        limit: int = 256,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        """Open a cache.

        Args:
            folder: Where it is kept. It is made, with its parents, or closed to others if it is
                there already. None is memory alone.
            max_age: How old an answer may get before its next update; None leaves it at that.
            limit: The number of entries, in memory as in the folder; the oldest go first. An entry
                takes about 40 kB. As many may have passed.
            clock: The time, aware.

        Raises:
            ConfigError: The folder cannot be used, or is somebody else's.
            UsageError: `max_age` is negative, or `limit` below 1.
        """
        _check_age(max_age)
        if limit < 1:
            raise UsageError(f"a cache has room for one entry at least, not {limit}")
        self._folder = None if folder is None else Path(folder).absolute()
        self._max_age = max_age
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[Key, _Entry] = {}  # the oldest first, as in the next
        self._kept: dict[Key, _Entry] = {}
        if self._folder is not None:
            _make_private(self._folder)

    def get(self, key: Key, *, max_age: timedelta | None = None) -> Collateral | None:
        """Return what was put under `key`, unless it has ended or is older than `max_age`.

        The cache's own `max_age` holds as well.
        """
        _check_age(max_age)
        ages = [age for age in (max_age, self._max_age) if age is not None]
        limit = min(ages) if ages else None
        now = self._clock()
        with self._lock:
            known = self._entries.get(key)
        if known is not None and known.holds(now, limit):
            return known.collateral
        # Another process may have fetched it since.
        entry = self._read(key, ".json")
        if entry is None or not entry.holds(now, limit):
            return None
        with self._lock:
            if self._entries.get(key) is known:  # else another thread has put what is newer
                self._remember(self._entries, key, entry)
        return entry.collateral

    def kept(self, key: Key) -> Collateral | None:
        """Return what any process kept under `key` last, also if it has ended since.

        None if there is nothing, or it is from the future: then the clock was wrong.
        """
        entry = self._read(key, ".kept")
        if entry is None:
            with self._lock:
                entry = self._kept.get(key)
        if entry is None or self._clock() < max(entry.fetched_at, issued(entry.collateral)):
            return None
        return entry.collateral

    def put(self, key: Key, collateral: Collateral) -> None:
        """Keep `collateral`, which has just been fetched, under `key`.

        A folder that cannot be written any more is a warning in the log `attestkit.collateral`, for
        the collateral is good without it.

        Raises:
            CollateralError: A part of it has no dates.
        """
        self._put(self._entries, ".json", key, self._entry(collateral))

    def amend(
        self, key: Key, held: Collateral, collateral: Collateral, max_age: timedelta | None = None
    ) -> Collateral | None:
        """Put `collateral` in place of what `get` has returned for `key`, as old as that is.

        Return it, or None if it cannot be used; as `get` and `put`.
        """
        with self._lock:
            known = self._entries.get(key)
        if known is None or known.collateral is not held:  # others have come since
            return None
        entry = self._entry(collateral)._replace(fetched_at=known.fetched_at)
        self._put(self._entries, ".json", key, entry)
        return self.get(key, max_age=max_age)

    def keep(self, key: Key, collateral: Collateral) -> None:
        """Keep `collateral`, which has passed a verification, beside what `put` keeps; as `put`.

        What is from the future, by this clock, has passed at another time than now: it does not
        take the place of what counts.
        """
        if issued(collateral) <= self._clock():
            self._put(self._kept, ".kept", key, self._entry(collateral))

    def _entry(self, collateral: Collateral) -> _Entry:
        return _Entry(collateral, self._clock(), collateral.valid_from, collateral.valid_until)

    def _put(self, memory: dict[Key, _Entry], suffix: str, key: Key, entry: _Entry) -> None:
        with self._lock:
            self._remember(memory, key, entry)
        if self._folder is None:
            return
        path = self._path(self._folder, key, suffix)
        try:
            replace_file(path, _encode(key, entry), mode=0o600)
            self._prune(self._folder)
        except OSError as error:
            _logger.warning("cannot keep collateral in %s: %s", self._folder, error)

    @contextlib.contextmanager
    def turn(self, key: Key, seconds: float = TURN_SECONDS) -> Iterator[bool]:
        """Be the one of all processes on the folder that fetches what goes under `key`.

        Look with `get` once more in the block: who had the turn before may have put it. Whoever
        has none after `seconds` (another's fetch hangs) or at all (the folder cannot be written)
        does without.

        Yields:
            Whether nobody else is at it; in memory alone always.
        """
        handle = None if self._folder is None else self._take_turn(self._folder, key, seconds)
        try:
            yield handle is not None or self._folder is None
        finally:
            if handle is not None:
                os.close(handle)

    @staticmethod
    def _take_turn(folder: Path, key: Key, seconds: float) -> int | None:
        deadline = time.monotonic() + seconds
        try:
            name = hashlib.sha256(_read_salt(folder / ".salt", deadline) + _key_text(key))
            # Never removed, for a lock file that is removed is no lock; so their number is bounded.
            handle = open_regular(folder / f".{name.hexdigest()[:2]}.lock", os.O_RDWR | os.O_CREAT)
            try:
                _lock(handle, deadline)
            except BaseException:
                os.close(handle)
                raise
        except BlockingIOError:
            _logger.warning("no turn in %s in %g s: another fetches, or hangs", folder, seconds)
            return None
        except OSError as error:
            _logger.warning("cannot take turns in %s: %s", folder, error)
            return None
        return handle

    def _remember(self, memory: dict[Key, _Entry], key: Key, entry: _Entry) -> None:
        """Keep in memory, where the lock is held."""
        memory.pop(key, None)  # so that it goes to the end
        memory[key] = entry
        while len(memory) > self._limit:
            del memory[next(iter(memory))]

    def _read(self, key: Key, suffix: str) -> _Entry | None:
        if self._folder is None:
            return None
        try:
            path = self._path(self._folder, key, suffix)
            return _decode(key, read_regular(path, _FILE_LIMIT + 1))
        except (OSError, CollateralError, ValueError, KeyError, TypeError):
            return None  # not there, or not ours: what is fetched next takes its place

    @staticmethod
    def _path(folder: Path, key: Key, suffix: str) -> Path:
        # Parts of a key are chosen by strangers, and must not become parts of a path.
        return folder / f"{hashlib.sha256(_key_text(key)).hexdigest()}{suffix}"

    def _prune(self, folder: Path) -> None:
        """Remove the oldest entries over the limit, and what killed writers have left."""
        kinds = ((_ENTRY, self._limit), (_KEPT, self._limit), (_STRAY, _STRAYS))
        with os.scandir(folder) as found:
            names = [entry.name for entry in found]
        for pattern, limit in kinds:
            ours = [folder / name for name in names if pattern.fullmatch(name)]
            if len(ours) <= limit:
                continue
            for path in sorted(ours, key=_age_order)[:-limit]:
                with contextlib.suppress(OSError):  # another process was quicker
                    path.unlink()

    def __getstate__(self) -> tuple[object, ...]:
        return self._folder, self._max_age, self._limit, self._clock

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._folder, self._max_age, self._limit, self._clock = state
        self._lock = threading.Lock()
        self._entries, self._kept = {}, {}


def _lock(handle: int, deadline: float) -> None:
    """Lock an open file; BlockingIOError where another holds it until the deadline."""
    import fcntl  # late: a cache in memory does without, also where there is no such thing

    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return


def _read_salt(path: Path, deadline: float) -> bytes:
    """Return what a folder's locks are salted with; the first to come makes it, under its lock."""
    handle = open_regular(path, os.O_RDWR | os.O_CREAT)
    try:
        salt = os.pread(handle, _SALT_SIZE, 0)
        if len(salt) == _SALT_SIZE:
            return salt
        _lock(handle, deadline)
        salt = os.pread(handle, _SALT_SIZE, 0)
        if len(salt) < _SALT_SIZE:  # nobody was quicker
            salt = os.urandom(_SALT_SIZE)
            os.pwrite(handle, salt, 0)
            os.fsync(handle)
        return salt
    finally:
        os.close(handle)


def _check_age(max_age: timedelta | None) -> None:
    if max_age is not None and max_age < timedelta():
        raise UsageError(f"max_age is a time span that is not negative, not {max_age}")


def _make_private(folder: Path) -> None:
    try:
        make_folder(folder)
        close_folder(folder)
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror or error}") from error


def _age_order(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0


def _key_text(key: Key) -> bytes:
    return json.dumps(key).encode("ascii")


def _encode(key: Key, entry: _Entry) -> bytes:
    values = {
        "version": _VERSION,
        "key": key,
        "fetched_at": entry.fetched_at.isoformat(),
        "collateral": json.loads(entry.collateral.to_json()),
    }
    text = json.dumps(values).encode("ascii")
    return hashlib.sha256(text).hexdigest().encode("ascii") + b"\n" + text


def _decode(key: Key, content: bytes) -> _Entry:
    """Read a file; CollateralError, ValueError, KeyError or TypeError if it is none for `key`."""
    checksum, _, text = content.partition(b"\n")
    if len(content) > _FILE_LIMIT or checksum.decode("ascii") != hashlib.sha256(text).hexdigest():
        raise CollateralError("the file is damaged")
    values = json_object("the file", text)
    if values["version"] != _VERSION or values["key"] != list(key):
        raise CollateralError("the file is another's")
    fetched_at = datetime.fromisoformat(values["fetched_at"])
    if fetched_at.tzinfo is None:
        raise CollateralError("the file has a time without zone")
    collateral = Collateral.from_json(json.dumps(values["collateral"]))
    return _Entry(collateral, fetched_at, collateral.valid_from, collateral.valid_until)
