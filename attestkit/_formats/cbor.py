"""A reader of CBOR (RFC 8949) for hostile input; all that attestkit reads of it goes through here.

`CborReader` is a cursor whose methods read what a format has at that place, with the shortest heads
and definite lengths. `read_value` reads what others wrote, indefinite lengths included: COSE
documents, measurements.

The reader is our own because the input is hostile: cbor2 turns tags into dates, fractions, shared
and cyclic values on the way, and goes on silently where a document ends.
"""

from typing import TypeAlias

from attestkit.errors import FormatError

__all__ = ["CborReader", "Value", "read_value"]

_MAX_VALUES = 65_536
_MAX_SKIPPED = 1 << 20  # values that are passed over, so cheaper ones

_UINT, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _OTHER = range(8)
_BREAK = 0xFF
_CONSTANTS = {20: False, 21: True, 22: None}
# First bytes that are a value by themselves: small numbers, constants, and whatever is empty.
_WHOLE = frozenset([*range(0x18), *range(0x20, 0x38), 0x40, 0x60, 0x80, 0xA0, *range(0xE0, 0xF8)])
_MAX_DEPTH = 16
# Entries of a map; the largest of a real document has 32. Python's hash of a number is the number,
# so keys can be chosen that collide, and many of them would take the square of their number.
_MAX_ENTRIES = 4096
_LEAST = {2: 24, 3: 1 << 8, 5: 1 << 16, 9: 1 << 32}  # by bytes of a head, the least it may say

Value: TypeAlias = bool | int | bytes | str | list["Value"] | dict["Value", "Value"] | None


def read_value(data: bytes, *, tag: int | None = None) -> Value:
    """Return the one value that `data` holds; `tag` may stand in front of it.

    At most 65,536 values and pieces of strings, 4,096 entries in a map, 16 levels deep; no floats
    and no other tags.

    Raises:
        FormatError: `data` breaks CBOR, uses what is excluded above, or goes on behind the value.
    """
    reader = CborReader(data)
    if tag is not None:
        reader.tag(tag)
    value = reader.value()
    if left := len(data) - reader.at:
        raise FormatError(f"{left} bytes behind the CBOR value", offset=reader.at)
    return value


class CborReader:
    """A cursor over `data`; every method reads one value and moves behind it.

    Whatever cannot be is a FormatError with its offset.
    """

    __slots__ = ("_data", "_skipped", "_values_left", "at")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self._values_left = _MAX_VALUES
        self._skipped = 0
        self.at: int = at

    def header(self) -> tuple[bool, int]:
        """Read the head of a map or array: whether it is a map, and its number of entries."""
        start = self.at
        major, count = self._strict_head()
        if major not in {_ARRAY, _MAP}:
            raise FormatError("no map or array", offset=start)
        if count > len(self._data) - self.at:
            raise FormatError(f"{count} items wanted, data ends before", offset=start)
        return major == _MAP, count

    def count(self) -> int:
        """Read the head of an array: its number of items, at most as many as bytes are left."""
        start = self.at
        is_map, count = self.header()
        if is_map:
            raise FormatError("no array", offset=start)
        return count

    def integer(self) -> int:
        """Read a number of at most 64 bits that is not negative."""
        start = self.at
        major, value = self._strict_head()
        if major != _UINT:
            raise FormatError("no unsigned number", offset=start)
        return value

    def is_text(self) -> bool:
        """Tell whether a text is next."""
        return self._data[self.at : self.at + 1] >= b"\x60" and self._data[self.at] < 0x80

    def text(self) -> str:
        """Read text, UTF-8."""
        start = self.at
        major, size = self._strict_head()
        if major != _TEXT:
            raise FormatError("no text", offset=start)
        return self._text(size, start)

    def blob(self) -> bytes:
        """Read a byte string."""
        start = self.at
        major, size = self._strict_head()
        if major != _BYTES:
            raise FormatError("no byte string", offset=start)
        return self._take(size)

    def nil(self) -> bool:
        """Read null if it is next, and tell so."""
        found = self._data[self.at : self.at + 1] == b"\xf6"
        self.at += found
        return found

    def skip(self) -> None:
        """Read any one value, however deep, and forget it; at most 1,048,576 in all."""
        data, left = self._data, 1
        while left:
            left -= 1
            self._skipped += 1
            if self._skipped > _MAX_SKIPPED:
                raise FormatError(f"over {_MAX_SKIPPED} unknown values", offset=self.at)
            if self.at < len(data) and data[self.at] in _WHOLE:
                self.at += 1
                continue
            major, value = self._strict_head()
            if major in {_BYTES, _TEXT}:
                self._take(value)
            elif major in {_ARRAY, _MAP}:
                left += value * 2 if major == _MAP else value
            elif major == _TAG:
                left += 1

    def tag(self, number: int) -> None:
        """Read the tag `number` if it is next."""
        start = self.at
        if self._head() != (_TAG, number):
            self.at = start

    def is_tag(self) -> bool:
        """Tell whether a tag is next."""
        return self._data[self.at : self.at + 1] != b"" and self._data[self.at] >> 5 == _TAG

    def tag_number(self) -> int:
        """Read a tag: its number."""
        start = self.at
        major, number = self._strict_head()
        if major != _TAG:
            raise FormatError("no tag", offset=start)
        return number

    def number_or_text(self) -> int | str:
        """Read a number of at most 64 bits and its sign, or text."""
        start = self.at
        major, value = self._strict_head()
        if major == _TEXT:
            return self._text(value, start)
        if major not in {_UINT, _NEGATIVE}:
            raise FormatError("no number or text", offset=start)
        return value if major == _UINT else -1 - value

    def value(self, depth: int = 0) -> Value:
        """Read any one value as `read_value` describes."""
        start = self.at
        major, value = self._head()
        self._count(start, depth)
        if major in {_BYTES, _TEXT}:
            return self._string(major, value, start)
        if major == _ARRAY:
            return self._list(value, depth)
        if major == _MAP:
            return self._dict(value, depth)
        if value is None:
            raise self._refused(start)
        if major == _UINT:
            return value
        if major == _NEGATIVE:
            return -1 - value
        if major == _OTHER and value in _CONSTANTS and self.at == start + 1:
            return _CONSTANTS[value]
        raise self._refused(start)

    def _count(self, at: int, depth: int = 0) -> None:
        """Count a value, or a piece of one, against the limits."""
        self._values_left -= 1
        if self._values_left < 0 or depth > _MAX_DEPTH:
            raise FormatError("too many CBOR values, or nested too deeply", offset=at)

    def _list(self, count: int | None, depth: int) -> list[Value]:
        found: list[Value] = []
        while not self._ended(count, len(found)):
            found.append(self.value(depth + 1))
        return found

    def _dict(self, count: int | None, depth: int) -> dict[Value, Value]:
        found: dict[Value, Value] = {}
        while not self._ended(count, len(found)):
            at = self.at
            key = self.value(depth + 1)
            if len(found) == _MAX_ENTRIES:
                raise FormatError(f"a map has more than {_MAX_ENTRIES} entries", offset=at)
            if isinstance(key, (list, dict)) or key in found:
                raise FormatError("map key is a container or occurs twice", offset=at)
            found[key] = self.value(depth + 1)
        return found

    def _string(self, major: int, size: int | None, start: int) -> bytes | str:
        if size is not None:
            return self._take(size) if major == _BYTES else self._text(size, start)
        pieces: list[bytes] = []
        while not self._ended(None, 0):
            at = self.at
            piece_major, piece_size = self._head()
            self._count(at)
            if piece_major != major or piece_size is None:
                raise self._refused(at)
            # Each piece of a text must be text by itself.
            piece = self._take(piece_size)
            pieces.append(piece if major == _BYTES else _utf8(piece, at).encode())
        whole = b"".join(pieces)
        return whole if major == _BYTES else whole.decode()

    def _ended(self, count: int | None, done: int) -> bool:
        """Tell whether a container is complete, and read the break of one without a count."""
        if count is not None:
            return done == count
        if self._data[self.at : self.at + 1] != bytes([_BREAK]):
            return False
        self.at += 1
        return True

    def _strict_head(self) -> tuple[int, int]:
        start = self.at
        major, value = self._head()
        if value is None:
            raise FormatError("CBOR of indefinite length", offset=start)
        if (size := self.at - start) > 1 and value < _LEAST[size] and major != _OTHER:
            raise FormatError("CBOR head not in its shortest form", offset=start)
        return major, value

    def _head(self) -> tuple[int, int | None]:
        """Read a head: the major type, and its number, None for an indefinite length."""
        start = self.at
        if start >= len(self._data):
            raise FormatError("1 bytes wanted, 0 left", offset=start)
        first = self._data[start]
        self.at = start + 1
        major, low = first >> 5, first & 0x1F
        if low < 24:
            return major, low
        if low < 28:
            return major, int.from_bytes(self._take(1 << (low - 24)), "big")
        if low == 31 and major in {_BYTES, _TEXT, _ARRAY, _MAP}:
            return major, None
        raise self._refused(start)

    def _text(self, size: int, start: int) -> str:
        return _utf8(self._take(size), start)

    def _refused(self, at: int) -> FormatError:
        return FormatError("no CBOR value that is allowed here", offset=at)

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._data):
            left = len(self._data) - self.at
            raise FormatError(f"{size} bytes wanted, {left} left", offset=self.at)
        found = self._data[self.at : end]
        self.at = end
        return found


def _utf8(raw: bytes, at: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError("text is not UTF-8", offset=at) from error
