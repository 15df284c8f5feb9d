"""A cursor over DER (X.690), for what the X.509 of `cryptography` does not read.

Strict: definite lengths in their shortest form, tags of one byte, nothing behind the last element.
"""

from typing import Final

from attestkit.errors import FormatError

__all__ = [
    "BIT_STRING",
    "BOOLEAN",
    "GENERALIZED_TIME",
    "IA5_STRING",
    "INTEGER",
    "OCTET_STRING",
    "OID",
    "SEQUENCE",
    "UTC_TIME",
    "DerReader",
    "context",
    "dotted_oid",
]

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OID: Final = 0x06
IA5_STRING: Final = 0x16
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
# The least length that takes so many bytes; four hold 4 GiB, more than anything here.
_LONG: Final = {1: 0x80, 2: 1 << 8, 3: 1 << 16, 4: 1 << 24}


def context(number: int) -> int:
    """Return the tag of a constructed, context-specific element, such as [3] EXPLICIT."""
    return 0xA0 | number


class DerReader:
    """Reads elements one after the other; what cannot be is a FormatError with its offset."""

    __slots__ = ("_data", "_end", "at")

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self._data = data
        self._end = len(data) if end is None else end
        self.at = at

    def tag(self) -> int | None:
        """Return the tag of the next element without reading it; None at the end."""
        return self._data[self.at] if self.at < self._end else None

    def content(self, tag: int) -> bytes:
        """Read an element and return its content."""
        start, end = self._element(tag)
        return self._data[start:end]

    def whole(self, tag: int) -> bytes:
        """Read an element and return it with its tag and length."""
        at = self.at
        _, end = self._element(tag)
        return self._data[at:end]

    def enter(self, tag: int) -> "DerReader":
        """Read an element and return a reader of its content."""
        start, end = self._element(tag)
        return DerReader(self._data, start, end)

    def integer(self) -> int:
        """Read an INTEGER of at most 32 bytes, which may be negative."""
        at = self.at
        content = self.content(INTEGER)
        # X.690, 8.3.2: the first nine bits are neither all zero nor all one.
        padded = len(content) > 1 and int.from_bytes(content[:2], "big") >> 7 in {0, 0x1FF}
        if not content or len(content) > 32 or padded:
            raise FormatError("not an INTEGER of 1 to 32 bytes in its shortest form", offset=at)
        return int.from_bytes(content, "big", signed=True)

    def boolean(self) -> bool:
        """Read a BOOLEAN."""
        at = self.at
        content = self.content(BOOLEAN)
        if content not in {b"\0", b"\xff"}:
            raise FormatError("not a BOOLEAN", offset=at)
        return content == b"\xff"

    def bits(self) -> tuple[int, bytes]:
        """Read a BIT STRING: the number of unused bits at its end, all zero, and its bytes."""
        at = self.at
        content = self.content(BIT_STRING)
        unused = content[0] if content else 8
        last = content[-1] if len(content) > 1 else 0xFF  # so that no bits have none unused
        if unused > 7 or last & (1 << unused) - 1:
            raise FormatError("not a BIT STRING", offset=at)
        return unused, content[1:]

    def finish(self) -> None:
        """Refuse anything behind what was read."""
        if self.at != self._end:
            raise FormatError("something stands behind the last element", offset=self.at)

    def _element(self, tag: int) -> tuple[int, int]:
        """Move behind the next element; return where its content starts and ends."""
        at = self.at
        head = self._data[at : min(at + 6, self._end)]
        if len(head) < 2 or head[0] != tag:
            found = f"tag {head[0]:#04x}" if head else "the end"
            raise FormatError(f"DER tag {tag:#04x} wanted, {found} found", offset=at)
        size, start = head[1], at + 2
        if size >= 0x80:
            width = size - 0x80
            size = int.from_bytes(head[2 : 2 + width], "big")
            start += width
            least = _LONG.get(width)
            if least is None or len(head) < 2 + width or size < least:
                raise FormatError("not a DER length", offset=at + 1)
        if size > self._end - start:
            raise FormatError(f"{size} bytes wanted, {self._end - start} left", offset=at)
        self.at = start + size
        return start, self.at


def dotted_oid(content: bytes) -> str:
    """Return the content of an OBJECT IDENTIFIER in its dotted form, such as 2.5.29.19.

    Raises:
        FormatError: It is none.
    """
    if not content or content[-1] & 0x80 or len(content) > 64:
        raise FormatError("not an OBJECT IDENTIFIER")
    arcs: list[int] = []
    arc = 0
    for byte in content:
        if not arc and byte == 0x80:
            raise FormatError("an OBJECT IDENTIFIER has an arc that is not in its shortest form")
        arc = arc << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(arc)
            arc = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))
