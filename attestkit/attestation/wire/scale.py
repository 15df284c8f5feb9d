"""SCALE, the codec of Substrate: the types that evidence uses.

The decoder is strict: lengths and counts are compact integers below 2**32 in their shortest form,
text is UTF-8. Every FormatError has the offset.
"""

from collections.abc import Callable, Iterable
from typing import ClassVar, TypeVar

from attestkit._argument_checks import utf8
from attestkit._formats.binary_layout import Cursor
from attestkit.errors import UsageError

T = TypeVar("T")

MAX_ITEMS = 65_536
"""Most items in a vector of evidence, such as the events of a log."""


class ScaleReader(Cursor):
    """Cursor over values in SCALE."""

    __slots__ = ()

    CODEC: ClassVar[str] = "SCALE"

    def u8(self) -> int:
        """Read one byte."""
        return self.take(1)[0]

    def u32(self) -> int:
        """Read 4 bytes, little-endian."""
        return int.from_bytes(self.take(4), "little")

    def compact(self) -> int:
        """Read a compact integer below 2**32 in its shortest form."""
        start = self.at
        first = self.u8()
        mode = first & 3
        if mode == 0:
            return first >> 2
        if mode == 3:
            if first != 3:
                raise self.error("compact integer must be below 2**32", "wrong_value", start)
            value, least = self.u32(), 1 << 30
        else:
            more = self.take(1 if mode == 1 else 3)
            value = (first | int.from_bytes(more, "little") << 8) >> 2
            least = 1 << 6 if mode == 1 else 1 << 14
        if value < least:
            raise self.error("compact integer must be in shortest form", "not_canonical", start)
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
        return self.take(self.compact())

    def text(self) -> str:
        """Read a compact length and that many bytes of UTF-8."""
        raw = self.blob()
        if not raw:
            return ""
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            at = self.at - len(raw) + error.start
            raise self.error("text is not UTF-8", "encoding", at) from error

    def vector(self, item: "Callable[[ScaleReader], T]") -> tuple[T, ...]:
        """Read a compact count, at most 65,536, and that many items, each with `item`."""
        start = self.at
        count = self.compact()
        if count > self.remaining:  # every item has at least one byte
            raise self.truncated(count, start)
        if count > MAX_ITEMS:
            raise self.error(f"{count} items exceed the limit of {MAX_ITEMS}", "too_many", start)
        return tuple([item(self) for _ in range(count)])


def encode_u32(value: int) -> bytes:
    """Encode `value` in 4 bytes, little-endian; UsageError if it is not 0 to 2**32 - 1."""
    return _fixed(value, 4)


def encode_compact(value: int) -> bytes:
    """Encode `value`, 0 to 2**32 - 1, in its shortest compact form; UsageError for others."""
    if value < 1 << 6:
        return _fixed(value << 2, 1)
    if value < 1 << 14:
        return _fixed(value << 2 | 1, 2)
    if value < 1 << 30:
        return _fixed(value << 2 | 2, 4)
    return b"\3" + _fixed(value, 4)


def encode_blob(value: bytes) -> bytes:
    """Encode `value`, bytes, after their number as a compact integer."""
    return encode_compact(len(value)) + value


def encode_text(value: str) -> bytes:
    """Encode `value` as UTF-8, after the number of bytes as a compact integer.

    Raises:
        UsageError: If `value` has an unpaired surrogate.
    """
    return encode_blob(utf8(value, "SCALE", UsageError))


def encode_vector(items: Iterable[bytes]) -> bytes:
    """Encode a vector of items that are encoded already."""
    found = list(items)
    return encode_compact(len(found)) + b"".join(found)


def _fixed(value: int, size: int) -> bytes:
    try:
        return value.to_bytes(size, "little")
    except OverflowError as error:
        raise UsageError(
            f"SCALE: {value} does not fit in {size} bytes, unsigned", reason="out_of_range"
        ) from error
