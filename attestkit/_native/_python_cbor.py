"""The function of cbor_check.c in pure Python."""

from typing import Final

from attestkit._native._status import Status, refuse

MAX_VALUES: Final = 65_536
"""Most values of a document, and chunks of its strings."""

MAX_DEPTH: Final = 16
"""Most arrays and maps around a value."""

MAX_ENTRIES: Final = 4096
"""Most entries of a map; the largest real document has 32. Python hashes an integer to itself, so
an attacker can choose colliding keys, and inserting n of them takes O(n**2)."""

_NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _OTHER = 1, 2, 3, 4, 5, 7
_CONSTANTS: Final = {20: False, 21: True, 22: None}
_BREAK: Final = 0xFF
_LEAST: Final = {2: 24, 3: 1 << 8, 5: 1 << 16, 9: 1 << 32}  # by the size of a head in bytes

_NOT_A_KEY: Final = object()


def cbor_check(data: bytes, start: int, /, *, canonical: bool) -> None:
    """Check that `data` from the offset `start` on is one value that a decoder may read.

    Allowed are integers, strings, false, true, null, arrays, and maps without duplicate keys,
    within the limits `MAX_VALUES`, `MAX_DEPTH` and `MAX_ENTRIES`.

    Args:
        data: The document.
        start: Where the value begins.
        canonical: Whether lengths must be definite, and heads in their shortest form.

    Raises:
        FormatError: If the value is malformed, exceeds a limit, uses an unsupported type, has a
            duplicate key, or has bytes after it.
    """
    checker = _Checker(data, start, canonical=canonical)
    checker.value(0)
    if checker.at < len(data):
        raise refuse(Status.CBOR_TRAILING, checker.at)


class _Checker:
    def __init__(self, data: bytes, at: int, *, canonical: bool) -> None:
        self.data = data
        self.at = at
        self.canonical = canonical
        self.values = 0

    def value(self, depth: int) -> object:
        """Check a value; return it if it may be a key."""
        start = self.at
        major, argument = self._head()
        if self.canonical and argument is None:
            raise refuse(Status.CBOR_INDEFINITE, start)
        size = self.at - start
        if self.canonical and size > 1 and major != _OTHER and (argument or 0) < _LEAST[size]:
            raise refuse(Status.CBOR_HEAD, start)
        self._count(start)
        if depth > MAX_DEPTH:
            raise refuse(Status.CBOR_DEPTH, start)
        if major in {_BYTES, _TEXT}:
            return self._string(major, argument, start)
        if major in {_ARRAY, _MAP}:
            self._items(argument, depth, is_map=major == _MAP)
            return _NOT_A_KEY
        if major <= _NEGATIVE:
            assert argument is not None, "no integer has an indefinite length"
            return -1 - argument if major == _NEGATIVE else argument
        if major != _OTHER or argument not in _CONSTANTS or size > 1:
            raise refuse(Status.CBOR_TYPE, start)
        return _CONSTANTS[argument]

    def _items(self, count: int | None, depth: int, *, is_map: bool) -> None:
        keys: set[object] = set()
        done = 0
        while not self._ended(count, done):
            done += 1
            start = self.at
            found = self.value(depth + 1)
            if is_map:
                if len(keys) == MAX_ENTRIES:
                    raise refuse(Status.CBOR_ENTRIES, start)
                if found is _NOT_A_KEY:
                    raise refuse(Status.CBOR_KEY, start)
                if found in keys:
                    raise refuse(Status.CBOR_DUPLICATE, start)
                keys.add(found)
                self.value(depth + 1)

    def _string(self, major: int, size: int | None, start: int) -> object:
        if size is not None:
            return self._content(major, size, start)
        while not self._ended(None, 0):
            at = self.at
            chunk_major, chunk_size = self._head()
            self._count(at)
            if chunk_major != major or chunk_size is None:
                raise refuse(Status.CBOR_CHUNK, at)
            self._content(major, chunk_size, at)
        return _NOT_A_KEY

    def _content(self, major: int, size: int, start: int) -> bytes | str:
        content = self._take(size)
        if major == _BYTES:
            return content
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise refuse(Status.CBOR_TEXT, start) from error

    def _ended(self, count: int | None, done: int) -> bool:
        """Return whether all items were read; after indefinitely many, read the break.

        `count` is the number of items (None: indefinite), `done` that of those read.
        """
        if count is not None:
            return done == count
        if self.data[self.at : self.at + 1] != bytes([_BREAK]):
            return False
        self.at += 1
        return True

    def _count(self, at: int) -> None:
        self.values += 1
        if self.values > MAX_VALUES:
            raise refuse(Status.CBOR_VALUES, at)

    def _head(self) -> tuple[int, int | None]:
        """Read a head; return major type and argument (None for an indefinite length)."""
        start = self.at
        first = self._take(1)[0]
        major, low = first >> 5, first & 0x1F
        if low < 24:
            return major, low
        if low < 28:
            return major, int.from_bytes(self._take(1 << (low - 24)), "big")
        if low < 31 or not _BYTES <= major <= _MAP:
            raise refuse(Status.CBOR_SYNTAX, start)
        return major, None

    def _take(self, size: int) -> bytes:
        found = self.data[self.at : self.at + size]
        if len(found) < size:
            raise refuse(Status.CBOR_TRUNCATED, self.at)
        self.at += size
        return found
