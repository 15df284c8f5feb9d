"""Cache of fetched collateral until its next update: in memory, and optionally in a folder.

Collateral is public, and a Verifier checks its signatures at every use. The folder is accessible to
its owner only, because another writer could roll back collateral to an older, still valid version,
or deny service.

The first line of a file is the SHA-256 of the rest. The rest is JSON: version, key, time of the
fetch, and the fields of `Collateral`. A file that is malformed or of another key is ignored
and overwritten.

Verified collateral is stored beside fetched collateral, for rollback protection (see
`caching_source`): files of the same format with the suffix `.kept`, which are used past their next
update.

Processes that need the same collateral serialise their fetches, so that the second one finds the
result of the first: each locks one of 256 files `.NN.lock`, chosen by the key. The kernel releases
the lock when its holder exits; other processes wait `FETCH_LOCK_SECONDS` at most. Keys derive from
untrusted evidence, so the file is chosen by a hash over `.salt`, 16 random bytes, and the key:
otherwise an attacker could construct keys that contend for one lock.
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

from attestkit._system.bounded_cache import BoundedCache
from attestkit._system.cache_folder import (
    MAX_TEMPORARY,
    add_checksum,
    open_cache_folder,
    remove_checksum,
    write_cache_file,
)
from attestkit._system.fork_safety import call_now_and_after_fork, unlock_and_close
from attestkit._system.untrusted_files import open_regular, read_regular
from attestkit.collateral.intel_collateral import (
    Collateral,
    issue_time,
    json_object,
    merge_newest,
)
from attestkit.errors import CollateralError, UsageError

__all__ = ["CollateralCache", "Key"]

Key: TypeAlias = tuple[str, ...]
"""Cache key: URL of the service, TEE, and the platform's query parameters."""

FETCH_LOCK_SECONDS: Final = 20.0
"""Maximum wait for another process's fetch; afterwards both fetch."""

_POLL_SECONDS: Final = 0.02
_SALT_SIZE: Final = 16  # bytes
_VERSION: Final = 1
_FILE_LIMIT: Final = 16 << 20  # bytes; real ones are about 40 kB
_FETCHED_FILE: Final = re.compile(r"[0-9a-f]{64}\.json")
_VERIFIED_FILE: Final = re.compile(r"[0-9a-f]{64}\.kept")
_TEMPORARY_FILE: Final = re.compile(r"\.[0-9a-f]{64}\.(?:json|kept)\..+")
_logger = logging.getLogger("attestkit.collateral")


def _now() -> datetime:
    return datetime.now(timezone.utc)


class _CacheEntry(NamedTuple):
    collateral: Collateral
    fetched_at: datetime
    valid_from: datetime  # latest start of the validity of its parts
    valid_until: datetime  # earliest end, exclusive

    def is_usable(self, now: datetime, max_age: timedelta | None) -> bool:
        """Return whether the entry is valid at `now`, and at most `max_age` old (None: any).

        An entry fetched after `now` is not valid: the clock was wrong.
        """
        if not (max(self.fetched_at, self.valid_from) <= now < self.valid_until):
            return False
        return max_age is None or now - self.fetched_at <= max_age


class CollateralCache:
    """Cache of collateral by key; threads may share it, and processes may share its folder.

    A pickle has no entries of the memory; the clock must be picklable.
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
            folder: Folder of the cache, created with its parents if missing; its mode is set to
                0700. None keeps entries in memory only.
            max_age: Maximum age of entries; None uses them until their next update.
            limit: Maximum number of entries, which applies separately to memory and folder, and to
                fetched and verified collateral. The oldest are removed first. An entry has about
                40 kB.
            clock: Function that returns the current time as an aware datetime.

        Raises:
            ConfigError: If the folder cannot be created or written, or belongs to another user.
            UsageError: If `max_age` is negative, or `limit` below 1.
        """
        _check_age(max_age)
        if limit < 1:
            raise UsageError(f"limit: must be at least 1, not {limit}", reason="out_of_range")
        self._folder = None if folder is None else open_cache_folder(folder)
        self._max_age = max_age
        self._limit = limit
        self._clock = clock
        self._create_memory()

    def _create_memory(self) -> None:
        self._entries = BoundedCache[Key, _CacheEntry](self._limit)
        self._verified = BoundedCache[Key, _CacheEntry](self._limit)
        call_now_and_after_fork(self._create_lock)

    def _create_lock(self) -> None:
        """Create the lock; after a fork anew, because another thread may have held it."""
        self._lock = threading.Lock()  # of writers of the memory

    def get(self, key: Key, *, max_age: timedelta | None = None) -> Collateral | None:
        """Return the fetched collateral of `key`; None if it is missing, expired or too old.

        The smaller of `max_age` (None for no limit) and the cache's own maximum age applies.

        Raises:
            UsageError: If `max_age` is negative.
        """
        _check_age(max_age)
        ages = [age for age in (max_age, self._max_age) if age is not None]
        limit = min(ages) if ages else None
        now = self._clock()
        known = self._entries.find(key)
        if known is not None and known.is_usable(now, limit):
            return known.collateral
        # Another process may have fetched it since.
        entry = self._read(key, ".json")
        if entry is None or not entry.is_usable(now, limit):
            return None
        with self._lock:
            if self._entries.find(key) is known:  # otherwise another thread stored a newer one
                self._entries.put(key, entry)
        return entry.collateral

    def get_verified(self, key: Key) -> Collateral | None:
        """Return the newest verified parts of `key`, even if expired; None without any.

        They are those of the folder and of the memory, which are newer if the folder could not be
        written. Collateral that was stored or issued after the current time (wrong clock) is
        ignored.
        """
        now = self._clock()
        newest: Collateral | None = None
        for entry in (self._read(key, ".kept"), self._verified.find(key)):
            if entry is not None and max(entry.fetched_at, issue_time(entry.collateral)) <= now:
                found = entry.collateral
                newest = found if newest is None else merge_newest(newest, found)
        return newest

    def put(self, key: Key, collateral: Collateral) -> None:
        """Store `collateral`, which has just been fetched.

        If the folder cannot be written, a warning is logged to `attestkit.collateral`, and the
        entry is in memory only.

        Raises:
            CollateralError: If a part of the collateral has no dates.
        """
        self._put(self._entries, ".json", key, self._entry(collateral))

    def replace(
        self, key: Key, held: Collateral, collateral: Collateral, max_age: timedelta | None = None
    ) -> Collateral | None:
        """Replace an entry of the cache, keeping the time of its fetch.

        Args:
            key: Key of the entry.
            held: Collateral that `get` returned.
            collateral: Collateral that replaces it.
            max_age: Maximum age since the fetch, besides the cache's own; None sets none.

        Returns:
            `collateral`; None if it is expired or too old, or another thread has replaced the
            entry.

        Raises:
            CollateralError: If a part of `collateral` has no dates.
            UsageError: If `max_age` is negative.
        """
        known = self._entries.find(key)
        if known is None or known.collateral is not held:  # replaced by another thread
            return None
        entry = self._entry(collateral)._replace(fetched_at=known.fetched_at)
        self._put(self._entries, ".json", key, entry)
        return self.get(key, max_age=max_age)

    def put_verified(self, key: Key, collateral: Collateral) -> None:
        """Store verified collateral, beside the fetched collateral of `put`; same errors as `put`.

        Collateral issued after the current time is not stored: it was verified for a later time.
        """
        if issue_time(collateral) <= self._clock():
            self._put(self._verified, ".kept", key, self._entry(collateral))

    def _entry(self, collateral: Collateral) -> _CacheEntry:
        return _CacheEntry(collateral, self._clock(), collateral.valid_from, collateral.valid_until)

    def _put(
        self, memory: BoundedCache[Key, _CacheEntry], suffix: str, key: Key, entry: _CacheEntry
    ) -> None:
        with self._lock:
            memory.put(key, entry)
        if self._folder is None:
            return
        path = self._path(self._folder, key, suffix)
        try:
            limits = {_FETCHED_FILE: self._limit, _VERIFIED_FILE: self._limit}
            limits[_TEMPORARY_FILE] = MAX_TEMPORARY
            write_cache_file(path, _encode(key, entry), limits)
        except OSError as error:
            _logger.warning("cannot store collateral in %s: %s", self._folder, error)

    @contextlib.contextmanager
    def fetch_lock(self, key: Key, seconds: float = FETCH_LOCK_SECONDS) -> Iterator[bool]:
        """Context manager: lock fetches of `key` by processes with this folder, unlock on exit.

        Call `get` again in the block: the previous holder may have stored the collateral. The block
        also runs without the lock, after a wait of `seconds` or if the folder cannot be written.

        Yields:
            Whether the lock is held; always true without a folder.
        """
        handle = (
            None if self._folder is None else self._acquire_fetch_lock(self._folder, key, seconds)
        )
        try:
            yield handle is not None or self._folder is None
        finally:
            if handle is not None:
                unlock_and_close(handle)

    @staticmethod
    def _acquire_fetch_lock(folder: Path, key: Key, seconds: float) -> int | None:
        deadline = time.monotonic() + seconds
        try:
            name = hashlib.sha256(_read_salt(folder / ".salt", deadline) + _key_text(key))
            # Lock files are never removed: another process could hold a lock on a removed file.
            handle = open_regular(folder / f".{name.hexdigest()[:2]}.lock", os.O_RDWR | os.O_CREAT)
            try:
                _lock(handle, deadline)
            except BaseException:
                os.close(handle)
                raise
        except BlockingIOError:
            _logger.warning(
                "no fetch lock in %s within %g s: another process is fetching, or hangs",
                folder,
                seconds,
            )
            return None
        except OSError as error:
            _logger.warning("cannot lock fetches in %s: %s", folder, error)
            return None
        return handle

    def _read(self, key: Key, suffix: str) -> _CacheEntry | None:
        if self._folder is None:
            return None
        try:
            path = self._path(self._folder, key, suffix)
            return _decode(key, read_regular(path, _FILE_LIMIT + 1))
        except (OSError, CollateralError, ValueError, KeyError, TypeError):
            return None  # missing or invalid: the next fetch overwrites it

    @staticmethod
    def _path(folder: Path, key: Key, suffix: str) -> Path:
        # Parts of a key are untrusted, and must not become parts of a path.
        return folder / f"{hashlib.sha256(_key_text(key)).hexdigest()}{suffix}"

    def __getstate__(self) -> tuple[object, ...]:
        return self._folder, self._max_age, self._limit, self._clock

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._folder, self._max_age, self._limit, self._clock = state
        self._create_memory()


def _lock(handle: int, deadline: float) -> None:
    """Lock an open file; BlockingIOError if another process holds it until the deadline.

    `handle` is the file's descriptor, and `deadline` a time of `time.monotonic`.
    """
    import fcntl  # lazy: not on Windows, where a cache in memory works

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
    """Return the salt (16 bytes) in the file `path`; if it has none, lock the file and write one.

    `deadline` is that of `_lock`.
    """
    handle = open_regular(path, os.O_RDWR | os.O_CREAT)
    try:
        salt = os.pread(handle, _SALT_SIZE, 0)
        if len(salt) == _SALT_SIZE:
            return salt
        _lock(handle, deadline)
        salt = os.pread(handle, _SALT_SIZE, 0)
        if len(salt) < _SALT_SIZE:  # not created by another process
            salt = os.urandom(_SALT_SIZE)
            os.pwrite(handle, salt, 0)
            os.fsync(handle)
        return salt
    finally:
        os.close(handle)


def _check_age(max_age: timedelta | None) -> None:
    if max_age is not None and max_age < timedelta():
        raise UsageError(f"max_age: must not be negative: {max_age}", reason="out_of_range")


def _key_text(key: Key) -> bytes:
    return json.dumps(key).encode("ascii")


def _encode(key: Key, entry: _CacheEntry) -> bytes:
    values = {
        "version": _VERSION,
        "key": key,
        "fetched_at": entry.fetched_at.isoformat(),
        "collateral": json.loads(entry.collateral.to_json()),
    }
    return add_checksum(json.dumps(values).encode("ascii"))


def _decode(key: Key, content: bytes) -> _CacheEntry:
    """Decode the `content` of a cache file, which must be of this key.

    CollateralError, ValueError, KeyError or TypeError if it is not valid.
    """
    if len(content) > _FILE_LIMIT:
        raise CollateralError(f"cache file: over {_FILE_LIMIT} bytes", reason="malformed")
    values = json_object("the file", remove_checksum(content))
    if values["version"] != _VERSION or values["key"] != list(key):
        raise CollateralError("cache file: wrong version or key", reason="malformed")
    fetched_at = datetime.fromisoformat(values["fetched_at"])
    if fetched_at.tzinfo is None:
        raise CollateralError("cache file: fetched_at has no time zone", reason="malformed")
    collateral = Collateral.from_json(json.dumps(values["collateral"]))
    return _CacheEntry(collateral, fetched_at, collateral.valid_from, collateral.valid_until)
