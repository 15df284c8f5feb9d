"""CBOR decoder (RFC 8949) for untrusted input; attestkit decodes all CBOR with it.

`CborReader` is a cursor for formats whose structure is known; it requires definite lengths and the
shortest heads. `read_value` decodes documents of other programs, indefinite lengths included: COSE
structures and measurement documents. `read_canonical` decodes documents in the encoding that
`CborReader` requires.

cbor2 decodes only what the native core has checked: alone it turns tags into dates, fractions,
shared and cyclic values, takes the last of duplicate keys, and ignores bytes after the document.
"""

from typing import ClassVar, TypeAlias

from attestkit._formats.binary_layout import Cursor
from attestkit._native import cbor_check
from attestkit.errors import FormatError

_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _OTHER = range(8)
# Initial bytes that are a complete value: small integers, constants, empty strings and containers.
_WHOLE = frozenset([*range(0x18), *range(0x20, 0x38), 0x40, 0x60, 0x80, 0xA0, *range(0xE0, 0xF8)])
_LEAST = {2: 24, 3: 1 << 8, 5: 1 << 16, 9: 1 << 32}  # smallest argument of a head of so many bytes

Value: TypeAlias = bool | int | bytes | str | list["Value"] | dict["Value", "Value"] | None


def read_value(data: bytes, *, tag: int | None = None) -> Value:
    """Return the value that `data` encodes, one whole document.

    Limits: 65,536 values and string chunks, 4,096 entries per map, 16 levels. Floats, other tags,
    and map keys other than integers, strings of definite length, false, true and null are not
    supported.

    `tag` is the number of a tag that may precede the value; None allows no tag.

    Raises:
        FormatError: If `data` is not well-formed, exceeds a limit, uses an unsupported type, has
            duplicate map keys, or bytes after the value.
    """
    reader = CborReader(data)
    if tag is not None:
        reader.tag(tag)
    cbor_check(data, reader.at, canonical=False)
    return _decode(data[reader.at :])


def read_first_value(data: bytes) -> Value:
    """Return the value with which `data` begins, as `read_value` does; later bytes are padding.

    Raises:
        FormatError: As `read_value`, except for bytes after the value.
    """
    try:
        cbor_check(data, 0, canonical=False)
    except FormatError as error:
        if error.reason != "trailing_data" or error.offset is None:
            raise
        data = data[: error.offset]
    return _decode(data)


def read_canonical(data: bytes, start: int) -> Value:
    """Return the value that `data` encodes from the offset `start` on, as `read_value` does.

    Raises:
        FormatError: As `read_value`; and if a length is indefinite, or a head not in its shortest
            form.
    """
    cbor_check(data, start, canonical=True)
    return _decode(data[start:])


def _decode(checked: bytes) -> Value:
    import cbor2  # lazy: most evidence is not in CBOR

    found: Value = cbor2.loads(checked)
    return found


class CborReader(Cursor):
    """Cursor over values in CBOR."""

    __slots__ = ()

    CODEC: ClassVar[str] = "CBOR"
    NIL: ClassVar[bytes] = b"\xf6"
    at: int
    WHOLE = _WHOLE

    def header(self) -> tuple[bool, int]:
        """Read the head of a map or array; return whether it is a map, and its number of entries.

        A number of entries larger than the number of remaining bytes is an error.
        """
        start = self.at
        major, count = self._strict_head()
        if major not in {_ARRAY, _MAP}:
            raise self.wrong_type("a map or an array", start)
        if count > len(self.data) - self.at:
            raise self.truncated(count, start)
        return major == _MAP, count

    def integer(self) -> int:
        """Read an unsigned integer of at most 64 bits; FormatError for another value."""
        start = self.at
        major, value = self._strict_head()
        if major != _UINT:
            raise self.wrong_type("an unsigned integer", start)
        return value

    def is_text(self) -> bool:
        """Return whether the next value is a text string."""
        return self.data[self.at : self.at + 1] >= b"\x60" and self.data[self.at] < 0x80

    def text(self) -> str:
        """Read a text string; FormatError for another value."""
        data, start = self.data, self.at
        if start < len(data) and 0x60 <= (first := data[start]) < 0x78:  # a name, mostly
            end = start + first - 0x5F
            if end <= len(data) and (name := data[start + 1 : end]).isascii():
                self.at = end
                return name.decode()
        major, size = self._strict_head()
        if major != _TEXT:
            raise self.wrong_type("a text string", start)
        return self.take_text(size, start)

    def blob(self) -> bytes:
        """Read a byte string; FormatError for another value."""
        start = self.at
        major, size = self._strict_head()
        if major != _BYTES:
            raise self.wrong_type("a byte string", start)
        return self.take(size)

    def skip_head(self) -> int:
        """Skip a value without the items that it contains; return the number of these items."""
        major, value = self._strict_head()
        if major in {_BYTES, _TEXT}:
            self.take(value)
        if major == _ARRAY:
            return value
        return value * 2 if major == _MAP else major == _TAG

    def tag(self, number: int) -> None:
        """Skip the tag `number` if it is next."""
        start = self.at
        if self._head() != (_TAG, number):
            self.at = start

    def is_tag(self) -> bool:
        """Return whether a tag is next."""
        return self.data[self.at : self.at + 1] != b"" and self.data[self.at] >> 5 == _TAG

    def tag_number(self) -> int:
        """Read a tag and return its number; FormatError if no tag is next."""
        start = self.at
        major, number = self._strict_head()
        if major != _TAG:
            raise self.wrong_type("a tag", start)
        return number

    def number_or_text(self) -> int | str:
        """Read an integer (-2**64 to 2**64 - 1) or a text string; FormatError for another value."""
        start = self.at
        major, value = self._strict_head()
        if major == _TEXT:
            return self.take_text(value, start)
        if major not in {_UINT, _NEGATIVE}:
            raise self.wrong_type("an integer or a text string", start)
        return value if major == _UINT else -1 - value

    def _strict_head(self) -> tuple[int, int]:
        start = self.at
        if start < len(self.data) and (first := self.data[start]) & 0x1F < 24:  # most heads
            self.at = start + 1
            return first >> 5, first & 0x1F
        major, value = self._head()
        if value is None:
            raise self.error("indefinite length is not allowed", "not_canonical", start)
        if (size := self.at - start) > 1 and value < _LEAST[size] and major != _OTHER:
            raise self.error("head not in its shortest form", "not_canonical", start)
        return major, value

    def _head(self) -> tuple[int, int | None]:
        """Read a head; return major type and argument (None for an indefinite length)."""
        start = self.at
        if start >= len(self.data):
            raise self.error("truncated: 1 bytes expected, 0 left", "truncated", start)
        first = self.data[start]
        self.at = start + 1
        major, low = first >> 5, first & 0x1F
        if low < 24:
            return major, low
        if low < 28:
            return major, int.from_bytes(self.take(1 << (low - 24)), "big")
        if low == 31 and major in {_BYTES, _TEXT, _ARRAY, _MAP}:
            return major, None
        raise self.error(f"invalid initial byte 0x{first:02x}", "syntax", start)
