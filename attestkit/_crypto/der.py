"""A strict DER reader (X.690), for structures that `cryptography` does not parse.

Lengths must be definite and in their shortest form, and tags have one byte.
"""

from typing import Final

from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OID: Final = 0x06
ENUMERATED: Final = 0x0A
UTF8_STRING: Final = 0x0C
PRINTABLE_STRING: Final = 0x13
IA5_STRING: Final = 0x16
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
SET: Final = 0x31
# The smallest length that needs this number of bytes; four bytes (4 GiB) are sufficient.
_LONG: Final = {1: 0x80, 2: 1 << 8, 3: 1 << 16, 4: 1 << 24}


def context(number: int) -> int:
    """Return the tag of a constructed, context-specific element with `number`: 0xA3 for 3."""
    return 0xA0 | number


def encode_element(tag: int, content: bytes) -> bytes:
    """Return the DER of an element: tag (one byte), length in the shortest form, and `content`."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def encode_sequence(*items: bytes) -> bytes:
    """Return the DER of a SEQUENCE of `items`, which are encoded elements."""
    return encode_element(SEQUENCE, b"".join(items))


def encode_integer(value: int) -> bytes:
    """Return the DER of an INTEGER that is not negative."""
    return encode_element(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


class DerReader:
    """A cursor over DER elements in `data`, from offset `at` to `end`; None is the end of the data.

    Methods raise FormatError if the next element is malformed, or has a tag other than `tag`.

    Arguments named `tag` are the identifier octet that the element must have, such as 0x30 for a
    SEQUENCE.
    """

    __slots__ = ("_data", "_end", "at")

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self._data = data
        self._end = len(data) if end is None else end
        self.at = at

    def tag(self) -> int | None:
        """Return the tag of the next element, or None at the end; do not read it."""
        return self._data[self.at] if self.at < self._end else None

    def content(self, tag: int) -> bytes:
        """Read the next element, which must have this tag; return its content."""
        start, end = self._element(tag)
        return self._data[start:end]

    def whole(self, tag: int | None = None) -> bytes:
        """Read an element (any, if `tag` is None); return its encoding: tag, length and content."""
        at = self.at
        tag = (self.tag() or 0) if tag is None else tag
        _, end = self._element(tag)
        return self._data[at:end]

    def enter(self, tag: int) -> "DerReader":
        """Read the next element, which must have this tag; return a reader for its content."""
        start, end = self._element(tag)
        return DerReader(self._data, start, end)

    def enter_only(self, tag: int) -> "DerReader":
        """Read the only element left, which must have this tag; return a reader for its content."""
        inner = self.enter(tag)
        self.finish()
        return inner

    def only(self, tag: int) -> bytes:
        """Read the only element left, which must have this tag; return its content."""
        content = self.content(tag)
        self.finish()
        return content

    def integer(self) -> int:
        """Read a signed INTEGER; FormatError over 32 bytes, or if not in its shortest form."""
        at = self.at
        content = self.content(INTEGER)
        # X.690, 8.3.2: the first nine bits must be neither all zero nor all one.
        padded = len(content) > 1 and int.from_bytes(content[:2], "big") >> 7 in {0, 0x1FF}
        if not content or len(content) > 32 or padded:
            message = "INTEGER must have 1 to 32 bytes in its shortest form"
            raise _bad(message, at, "not_canonical" if padded else "wrong_size")
        return int.from_bytes(content, "big", signed=True)

    def boolean(self) -> bool:
        """Read a BOOLEAN; FormatError unless it is 00 or FF."""
        at = self.at
        content = self.content(BOOLEAN)
        if content not in {b"\0", b"\xff"}:
            raise _bad("BOOLEAN must be 00 or FF", at, "wrong_value")
        return content == b"\xff"

    def bits(self) -> tuple[int, bytes]:
        """Read a BIT STRING; return the number of unused (zero) bits at its end, and its bytes."""
        at = self.at
        content = self.content(BIT_STRING)
        unused = content[0] if content else 8
        last = content[-1] if len(content) > 1 else 0xFF  # an empty string has no unused bits
        if unused > 7 or last & (1 << unused) - 1:
            raise _bad("BIT STRING: unused bits must be 0 to 7, all zero", at, "wrong_value")
        return unused, content[1:]

    def finish(self) -> None:
        """Raise FormatError unless all elements were read."""
        if self.at != self._end:
            raise _bad("data follow the last element", self.at, "trailing_data")

    def _element(self, tag: int) -> tuple[int, int]:
        """Skip the next element, which must have this tag; return start and end of its content."""
        data, at, end = self._data, self.at, self._end
        start = at + 2
        if start > end or data[at] != tag:
            raise self._unexpected(tag)
        size = data[at + 1]
        if size >= 0x80:
            size, start = self._long_length(size - 0x80)
        if size > end - start:
            raise _bad(f"{size} bytes expected, {end - start} left", at, "truncated")
        self.at = start + size
        return start, self.at

    def _long_length(self, width: int) -> tuple[int, int]:
        """Return the length encoded in the next `width` bytes, and the offset after those bytes."""
        start = self.at + 2 + width
        size = int.from_bytes(self._data[self.at + 2 : start], "big")
        least = _LONG.get(width)
        if least is None or start > self._end or size < least:
            raise _bad("length must be complete, in its shortest form", self.at + 1, "syntax")
        return size, start

    def _unexpected(self, tag: int) -> FormatError:
        at = self.at
        if at < self._end and self._data[at] != tag:
            message = f"expected tag {tag:#04x}, found tag {self._data[at]:#04x}"
            return _bad(message, at, "wrong_type")
        return _bad(f"expected tag {tag:#04x}, found the end", at, "truncated")


def _bad(message: str, at: int, reason: FormatReason) -> FormatError:
    return FormatError(f"DER: {message}", offset=at, reason=reason)


def dotted_oid(content: bytes) -> str:
    """Return the dotted form of the content of an OBJECT IDENTIFIER, such as 2.5.29.19.

    Raises:
        FormatError: If the content is malformed, or over 64 bytes.
    """
    if not content or content[-1] & 0x80 or len(content) > 64:
        raise FormatError("DER: OBJECT IDENTIFIER empty, truncated or too long", reason="syntax")
    arcs: list[int] = []
    arc = 0
    for byte in content:
        if not arc and byte == 0x80:
            message = "DER: arc of an OBJECT IDENTIFIER is not in its shortest form"
            raise FormatError(message, reason="not_canonical")
        arc = arc << 7 | byte & 0x7F
        if not byte & 0x80:
            arcs.append(arc)
            arc = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, (first, arcs[0] - 40 * first, *arcs[1:])))
