"""SCALE, the codec of Substrate, as far as evidence uses it: fixed integers, compact, vectors.

Reading is strict: lengths and counts are compact numbers below 2**32 in their shortest form,
booleans and option marks are 0 or 1, text is UTF-8, and nothing is ever read past the end. A broken
rule raises FormatError with the offset at which it broke.
"""

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from attestkit.errors import FormatError, UsageError

__all__ = [
    "MAX_ITEMS",
    "MAX_SKIPPED",
    "ScaleReader",
    "blob",
    "boolean",
    "compact",
    "option",
    "text",
    "u32",
    "u64",
    "vector",
]

T = TypeVar("T")

MAX_ITEMS = 65_536
"""Items that a vector of evidence may have: events of a log, first of all."""
MAX_SKIPPED = 1 << 20
"""Values that may be passed over in one parcel: those of unknown keys, and what comes too early."""


class ScaleReader:
    """A cursor over `data`; every method reads one value and moves behind it."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data: bytes = data
        self.at: int = at

    @property
    def remaining(self) -> int:
        """Count the bytes not read yet."""
        return len(self.data) - self.at

    def fixed(self, size: int) -> bytes:
        """Read exactly `size` bytes."""
        end = self.at + size
        if end > len(self.data):
            raise FormatError(f"{size} bytes wanted, {self.remaining} left", offset=self.at)
        found = self.data[self.at : end]
        self.at = end
        return found

    def rest(self) -> bytes:
        """Read all that is left."""
        return self.fixed(self.remaining)

    def u8(self) -> int:
        """Read one byte."""
        return self.fixed(1)[0]

    def u32(self) -> int:
        """Read 4 bytes, little-endian."""
        return int.from_bytes(self.fixed(4), "little")

    def u64(self) -> int:
        """Read 8 bytes, little-endian."""
        return int.from_bytes(self.fixed(8), "little")

    def boolean(self) -> bool:
        """Read 00 or 01."""
        value = self.u8()
        if value > 1:
            raise FormatError(f"{value} is no boolean", offset=self.at - 1)
        return value == 1

    def compact(self) -> int:
        """Read a compact number below 2**32, which must be in its shortest form."""
        start = self.at
        first = self.u8()
        mode = first & 3
        if mode == 0:
            return first >> 2
        if mode == 3:
            if first != 3:
                raise FormatError("compact number of 2**32 or more", offset=start)
            value, least = self.u32(), 1 << 30
        else:
            more = self.fixed(1 if mode == 1 else 3)
            value = (first | int.from_bytes(more, "little") << 8) >> 2
            least = 1 << 6 if mode == 1 else 1 << 14
        if value < least:
            raise FormatError("compact number not in its shortest form", offset=start)
        return value

    def blob(self) -> bytes:
        """Read a compact length and that many bytes."""
        data, start = self.data, self.at + 1
        # Most are below 64 bytes, where the length is one byte; the rest, and errors, take longer.
        if start <= len(data) and not (first := data[start - 1]) & 3:
            end = start + (first >> 2)
            if end <= len(data):
                self.at = end
                return data[start:end]
        return self.fixed(self.compact())

    def text(self) -> str:
        """Read a compact length and that many bytes of UTF-8."""
        raw = self.blob()
        if not raw:
            return ""
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            at = self.at - len(raw) + error.start
            raise FormatError("text is not UTF-8", offset=at) from error

    def vector(self, item: Callable[[], T]) -> tuple[T, ...]:
        """Read a compact count, at most 65,536, and that many items, each by calling `item`."""
        start = self.at
        count = self.compact()
        if count > self.remaining:  # every item takes a byte or more: do not even start
            raise FormatError(f"{count} items wanted, {self.remaining} bytes left", offset=start)
        if count > MAX_ITEMS:
            raise FormatError(f"{count} items are more than {MAX_ITEMS}", offset=start)
        return tuple([item() for _ in range(count)])

    def option(self, value: Callable[[], T]) -> T | None:
        """Read 00 for nothing, or 01 and a value."""
        mark = self.u8()
        if mark > 1:
            raise FormatError(f"{mark} is no option mark", offset=self.at - 1)
        return value() if mark else None


def u32(value: int) -> bytes:
    """Encode 4 bytes, little-endian."""
    return _fixed(value, 4)


def u64(value: int) -> bytes:
    """Encode 8 bytes, little-endian."""
    return _fixed(value, 8)


boolean: Final[Callable[[bool], bytes]] = {False: b"\0", True: b"\1"}.__getitem__
"""Encode 00 or 01."""


def compact(value: int) -> bytes:
    """Encode a length or count below 2**32 in the shortest compact form."""
    if value < 1 << 6:
        return _fixed(value << 2, 1)
    if value < 1 << 14:
        return _fixed(value << 2 | 1, 2)
    if value < 1 << 30:
        return _fixed(value << 2 | 2, 4)
    return b"\3" + _fixed(value, 4)


def blob(value: bytes) -> bytes:
    """Encode bytes behind their compact length."""
    return compact(len(value)) + value


def text(value: str) -> bytes:
    """Encode text as UTF-8 behind its compact length."""
    try:
        return blob(value.encode())
    except UnicodeEncodeError as error:
        raise UsageError("text with half a surrogate pair has no UTF-8 form") from error


def vector(items: Iterable[bytes]) -> bytes:
    """Encode the count of `items`, which are encoded already, and then them."""
    found = list(items)
    return compact(len(found)) + b"".join(found)


def option(value: bytes | None) -> bytes:
    """Encode 00 for nothing, or 01 and the value, which is encoded already."""
    return b"\0" if value is None else b"\1" + value


def _fixed(value: int, size: int) -> bytes:
    try:
        return value.to_bytes(size, "little")
    except OverflowError as error:
        raise UsageError(f"{value} does not fit into {size} bytes") from error
