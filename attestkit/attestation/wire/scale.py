"""SCALE, the codec of Substrate: the types that evidence uses.

The decoder is strict: lengths and counts are compact integers below 2**32 in their shortest form,
booleans and option prefixes are 0 or 1, text is UTF-8. Every FormatError has the offset.
"""

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from attestkit.errors import FormatError, UsageError

__all__ = [
    "MAX_ITEMS",
    "MAX_SKIPPED",
    "ScaleReader",
    "encode_blob",
    "encode_boolean",
    "encode_compact",
    "encode_option",
    "encode_text",
    "encode_u32",
    "encode_u64",
    "encode_vector",
]

T = TypeVar("T")

MAX_ITEMS = 65_536
"""Most items in a vector of evidence, such as the events of a log."""
MAX_SKIPPED = 1 << 20
"""Most values that a decoder skips: values of unknown keys, and `data` before `kind`."""


class ScaleReader:
    """Cursor over `data`; every method reads one value and advances past it."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data: bytes = data
        self.at: int = at

    @property
    def remaining(self) -> int:
        """Number of bytes that are not read yet."""
        return len(self.data) - self.at

    def fixed(self, size: int) -> bytes:
        """Read exactly `size` bytes."""
        end = self.at + size
        if end > len(self.data):
            message = f"SCALE: truncated: {size} bytes expected, {self.remaining} left"
            raise FormatError(message, reason="truncated", offset=self.at)
        found = self.data[self.at : end]
        self.at = end
        return found

    def rest(self) -> bytes:
        """Read the remaining bytes."""
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
        """Read a boolean, 00 or 01."""
        value = self.u8()
        if value > 1:
            message = f"SCALE: boolean must be 0 or 1, not {value}"
            raise FormatError(message, reason="wrong_value", offset=self.at - 1)
        return value == 1

    def compact(self) -> int:
        """Read a compact integer below 2**32 in its shortest form."""
        start = self.at
        first = self.u8()
        mode = first & 3
        if mode == 0:
            return first >> 2
        if mode == 3:
            if first != 3:
                message = "SCALE: compact integer must be below 2**32"
                raise FormatError(message, reason="wrong_value", offset=start)
            value, least = self.u32(), 1 << 30
        else:
            more = self.fixed(1 if mode == 1 else 3)
            value = (first | int.from_bytes(more, "little") << 8) >> 2
            least = 1 << 6 if mode == 1 else 1 << 14
        if value < least:
            message = "SCALE: compact integer not in its shortest form"
            raise FormatError(message, reason="not_canonical", offset=start)
        return value

    def blob(self) -> bytes:
        """Read a compact length and that many bytes."""
        data, start = self.data, self.at + 1
        # Fast path for the most frequent case, less than 64 bytes with a length of one byte.
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
            message = "SCALE: text is not UTF-8"
            raise FormatError(message, reason="encoding", offset=at) from error

    def vector(self, item: Callable[[], T]) -> tuple[T, ...]:
        """Read a compact count, at most 65,536, and that many items with `item`."""
        start = self.at
        count = self.compact()
        if count > self.remaining:  # every item has at least one byte
            message = f"SCALE: truncated: {count} items, {self.remaining} bytes left"
            raise FormatError(message, reason="truncated", offset=start)
        if count > MAX_ITEMS:
            message = f"SCALE: {count} items exceed the limit of {MAX_ITEMS}"
            raise FormatError(message, reason="too_many", offset=start)
        return tuple([item() for _ in range(count)])

    def option(self, value: Callable[[], T]) -> T | None:
        """Read an option: 00 for None, or 01 and a value, which is read with `value`."""
        prefix = self.u8()
        if prefix > 1:
            message = f"SCALE: option must begin with 0 or 1, not {prefix}"
            raise FormatError(message, reason="wrong_value", offset=self.at - 1)
        return value() if prefix else None


def encode_u32(value: int) -> bytes:
    """Encode an integer in 4 bytes, little-endian."""
    return _fixed(value, 4)


def encode_u64(value: int) -> bytes:
    """Encode an integer in 8 bytes, little-endian."""
    return _fixed(value, 8)


encode_boolean: Final[Callable[[bool], bytes]] = {False: b"\0", True: b"\1"}.__getitem__
"""Encode a boolean as 00 or 01."""


def encode_compact(value: int) -> bytes:
    """Encode an integer below 2**32 in its shortest compact form."""
    if value < 1 << 6:
        return _fixed(value << 2, 1)
    if value < 1 << 14:
        return _fixed(value << 2 | 1, 2)
    if value < 1 << 30:
        return _fixed(value << 2 | 2, 4)
    return b"\3" + _fixed(value, 4)


def encode_blob(value: bytes) -> bytes:
    """Encode bytes with their compact length."""
    return encode_compact(len(value)) + value


def encode_text(value: str) -> bytes:
    """Encode text as UTF-8 with its compact length."""
    try:
        return encode_blob(value.encode())
    except UnicodeEncodeError as error:
        raise UsageError("SCALE: unpaired surrogate in text", reason="encoding") from error


def encode_vector(items: Iterable[bytes]) -> bytes:
    """Encode a vector of items that are encoded already."""
    found = list(items)
    return encode_compact(len(found)) + b"".join(found)


def encode_option(value: bytes | None) -> bytes:
    """Encode an option: 00 for None, or 01 and the value, which is encoded already."""
    return b"\0" if value is None else b"\1" + value


def _fixed(value: int, size: int) -> bytes:
    try:
        return value.to_bytes(size, "little")
    except OverflowError as error:
        message = f"SCALE: {value} does not fit into {size} bytes"
        raise UsageError(message, reason="out_of_range") from error
