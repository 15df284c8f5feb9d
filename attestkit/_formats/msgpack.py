"""Msgpack reader for untrusted input, for formats whose structure is known.

Byte strings have two representations: the type bin, and arrays of integers. Both are read.
"""

from typing import ClassVar

from attestkit._formats.binary_layout import Cursor
from attestkit.errors import FormatError

# Tables of the bytes that are the prefix cc (uint 8), and of those that need a prefix.
_IS_PREFIX = bytes([byte == 0xCC for byte in range(256)])
_IS_PREFIXED = bytes([byte > 0x7F and byte != 0xCC for byte in range(256)])

_MOST_NON_CANONICAL = 1 << 17  # items of an array of integers that needs the slow path

# Initial byte: size of the length, count or integer that follows.
_BIN = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_STR = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY = {0xDC: 2, 0xDD: 4}
_MAP = {0xDE: 2, 0xDF: 4}
_UINT = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_EXT = {0xC7: 1, 0xC8: 2, 0xC9: 4}
# Initial byte: size of the rest of the value: nil, booleans, floats, integers, fixed extensions.
_PLAIN = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_PLAIN |= _UINT | {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}


class MsgpackReader(Cursor):
    """Cursor over values in msgpack. No method is recursive."""

    __slots__ = ()

    CODEC: ClassVar[str] = "msgpack"
    NIL: ClassVar[bytes] = b"\xc0"
    at: int
    WHOLE = frozenset(range(0x81))  # fixint, and the empty map

    def header(self) -> tuple[bool, int]:
        """Read the head of a map or array; return whether it is a map, and its number of entries.

        FormatError for another value, or an array with more items than bytes left.
        """
        start = self.at
        first = self._first()
        if first & 0xF0 == 0x80:
            return True, first & 0x0F
        if first in _MAP:
            return True, self._big_endian(_MAP[first])
        if first & 0xF0 == 0x90:
            count = first & 0x0F
        elif first in _ARRAY:
            count = self._big_endian(_ARRAY[first])
        else:
            raise self.wrong_type("a map or an array", start)
        if count > len(self.data) - self.at:
            raise self.truncated(count, start)
        return False, count

    def integer(self) -> int:
        """Read an unsigned integer of at most 64 bits; FormatError for another value."""
        start = self.at
        first = self._first()
        if first < 0x80:
            return first
        if first not in _UINT:
            raise self.wrong_type("an unsigned integer", start)
        return self._big_endian(_UINT[first])

    def text(self) -> str:
        """Read a string; FormatError for another value, or text that is not UTF-8."""
        start = self.at
        first = self._first()
        if first & 0xE0 == 0xA0:
            size = first & 0x1F
        elif first in _STR:
            size = self._big_endian(_STR[first])
        else:
            raise self.wrong_type("a string", start)
        return self.take_text(size, start)

    def blob(self) -> bytes:
        """Read bytes: a bin, or an array of integers below 256; FormatError for another value."""
        start = self.at
        first = self._first()
        if first in _BIN:
            return self.take(self._big_endian(_BIN[first]))
        self.at = start
        return self._int_array()

    def skip_head(self) -> int:
        """Skip a value without the items that it contains; return the number of these items."""
        start = self.at
        first = self._first()
        if first < 0x80 or first >= 0xE0:
            return 0
        if first < 0xA0:
            count = first & 0x0F
            return count * 2 if first < 0x90 else count
        if first < 0xC0:
            self.take(first & 0x1F)
        elif first in _PLAIN:
            self.take(_PLAIN[first])
        elif first in _ARRAY:
            return self._big_endian(_ARRAY[first])
        elif first in _MAP:
            return self._big_endian(_MAP[first]) * 2
        elif first in _EXT:
            self.take(self._big_endian(_EXT[first]) + 1)
        elif first in _BIN:
            self.take(self._big_endian(_BIN[first]))
        elif first in _STR:
            self.take(self._big_endian(_STR[first]))
        else:
            raise self.error(f"invalid initial byte 0x{first:02x}", "syntax", start)
        return 0

    def _int_array(self) -> bytes:
        count = self.count()
        if (found := self._canonical_ints(count)) is not None:
            return found
        if count > _MOST_NON_CANONICAL:
            message = f"msgpack: array of {count} integers: one is not in its shortest form"
            raise FormatError(message, reason="not_canonical", offset=self.at)
        data, at = self.data, self.at
        values = bytearray(count)
        try:
            for index in range(count):
                value = data[at]
                at += 1
                if value == 0xCC:
                    value = data[at]
                    at += 1
                elif value > 0x7F:  # above 255, not an integer, or in a longer form
                    self.at = at - 1
                    value = self.integer()
                    at = self.at
                values[index] = value
        except IndexError as error:
            problem = "truncated inside an array of bytes"
            raise self.error(problem, "truncated", len(data)) from error
        except ValueError as error:
            if isinstance(error, FormatError):
                raise
            raise self.error("integer above 255 in an array of bytes", "wrong_value", at) from error
        self.at = at
        return bytes(values)

    def _canonical_ints(self, count: int) -> bytes | None:
        """Read `count` integers below 256 in their shortest form, without a loop over them.

        Returns None, and reads nothing, if an integer is not in its shortest form.
        """
        start = self.at
        # Replace the value cc, so that every remaining cc is a prefix.
        marked = self.data[start : start + 2 * count].replace(b"\xcc\xcc", b"\xcc\xff")
        end, longer = 0, count  # each prefix among the bytes so far adds one byte to the array
        while longer > end:
            end, longer = longer, longer + marked.count(0xCC, end, longer)
        marked = marked[:end]
        prefixes, prefixed = marked.translate(_IS_PREFIX), marked.translate(_IS_PREFIXED)
        if len(marked) < end or b"\0" + prefixes != prefixed + b"\0":
            return None
        self.at += end
        pieces = self.data[start : self.at].split(b"\xcc\xcc")
        return b"\xcc".join([piece.translate(None, b"\xcc") for piece in pieces])

    def _first(self) -> int:
        return self.take(1)[0]

    def _big_endian(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")
