"""Evidence in msgpack, wire version 1: what agents write once an event has version 2.

Two ways of writing bytes occur and are told apart when writing: quote, report, certificates and
report data are arrays of numbers, digests and payloads are the bin type. Reading takes either.
"""

from attestkit.attestation.wire import v1_document
from attestkit.attestation.wire.evidence_parts import Evidence
from attestkit.attestation.wire.scale import MAX_SKIPPED
from attestkit.attestation.wire.v1_document import Ints
from attestkit.errors import FormatError, UsageError

__all__ = ["FIRST_BYTES", "MsgpackReader", "decode", "encode"]

FIRST_BYTES = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])

# Evidence of a TD starts with these bytes, as agents write it, up to the quote.
_TDX_START = b"\x83\xa7version\1\xa8platform\x82\xa4kind\xa3tdx\xa4data\x82\xa5quote"

# Every byte of an array of numbers by what it is: 0 a number, 1 the mark cc, 2 any other.
_KINDS = bytes([byte >> 7 << (byte != 0xCC) for byte in range(256)])

# What follows these first bytes: a length or count of so many bytes.
_MOST_ODD = 1 << 17  # bytes as numbers that are not all in shortest form; a large quote
_BIN = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_STR = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY = {0xDC: 2, 0xDD: 4}
_MAP = {0xDE: 2, 0xDF: 4}
_UINT = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_EXT = {0xC7: 1, 0xC8: 2, 0xC9: 4}
# Values of a fixed size behind the first byte: nil, booleans, floats, numbers, fixed extensions.
_PLAIN = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_PLAIN |= _UINT | {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}


def decode(data: bytes) -> Evidence:
    """Return the evidence in `data`.

    Raises:
        FormatError: `data` breaks the format, is of another version, or goes on behind it.
    """
    if data.startswith(_TDX_START) and (found := _tdx(data)) is not None:
        return found
    return v1_document.decode(MsgpackReader(data), len(data), "msgpack")


def _tdx(data: bytes) -> Evidence | None:
    """Read evidence of a TD that is written as agents write it; None if anything is otherwise."""
    from attestkit.attestation.wire import v1_tdx_fast  # late: it loads msgspec

    reader = MsgpackReader(data, len(_TDX_START))
    try:
        quote = reader.blob()
    except FormatError:
        return None
    return v1_tdx_fast.decode(quote, data[reader.at :])


def encode(evidence: Evidence) -> bytes:
    """Return `evidence` in msgpack."""
    import msgspec.msgpack  # late: only who needs this encoding pays for it

    try:
        return msgspec.msgpack.encode(_with_int_arrays(v1_document.tree(evidence)))
    except UnicodeEncodeError as error:
        raise UsageError("text with half a surrogate pair has no UTF-8 form") from error


def _with_int_arrays(value: object) -> object:
    if isinstance(value, Ints):
        return list(value)
    if isinstance(value, dict):
        return {key: _with_int_arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_int_arrays(item) for item in value]
    return value


class MsgpackReader:
    """A cursor over `data`; every method reads one value and moves behind it.

    Whatever cannot be is a FormatError with its offset. Nothing recurses.
    """

    __slots__ = ("_data", "_skipped", "at")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self._skipped = 0
        self.at: int = at

    def header(self) -> tuple[bool, int]:
        """Read the head of a map or array: whether it is a map, and its number of entries."""
        start = self.at
        first = self._first()
        if first & 0xF0 == 0x80:
            return True, first & 0x0F
        if first in _MAP:
            return True, self._big_endian(_MAP[first])
        self.at = start
        return False, self.count()

    def count(self) -> int:
        """Read the head of an array: its number of items, at most as many as bytes are left."""
        start = self.at
        first = self._first()
        if first & 0xF0 == 0x90:
            count = first & 0x0F
        elif first in _ARRAY:
            count = self._big_endian(_ARRAY[first])
        else:
            raise FormatError("no map or array", offset=start)
        if count > len(self._data) - self.at:
            raise FormatError(f"{count} items wanted, data ends before", offset=start)
        return count

    def integer(self) -> int:
        """Read a number of at most 64 bits that is not negative."""
        start = self.at
        first = self._first()
        if first < 0x80:
            return first
        if first not in _UINT:
            raise FormatError("no unsigned number", offset=start)
        return self._big_endian(_UINT[first])

    def text(self) -> str:
        """Read text, UTF-8."""
        start = self.at
        first = self._first()
        if first & 0xE0 == 0xA0:
            size = first & 0x1F
        elif first in _STR:
            size = self._big_endian(_STR[first])
        else:
            raise FormatError("no text", offset=start)
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as error:
            raise FormatError("text is not UTF-8", offset=start) from error

    def blob(self) -> bytes:
        """Read bytes: a bin, or an array of numbers below 256."""
        start = self.at
        first = self._first()
        if first in _BIN:
            return self._take(self._big_endian(_BIN[first]))
        self.at = start
        return self._int_array()

    def nil(self) -> bool:
        """Read nil if it is next, and tell so."""
        found = self._data[self.at : self.at + 1] == b"\xc0"
        self.at += found
        return found

    def skip(self) -> None:
        """Read any one value, however deep, and forget it; at most 1,048,576 in all."""
        data, left = self._data, 1
        while left:
            self._skipped += 1
            if self._skipped > MAX_SKIPPED:
                raise FormatError(f"over {MAX_SKIPPED} unknown values", offset=self.at)
            if self.at < len(data) and data[self.at] <= 0x80:  # a number or an empty map: a byte
                self.at += 1
                left -= 1
            else:
                left += self._skip_head() - 1

    def _skip_head(self) -> int:
        """Skip a value but for the values inside it; return how many those are."""
        start = self.at
        first = self._first()
        if first < 0x80 or first >= 0xE0:
            return 0
        if first < 0xA0:
            count = first & 0x0F
            return count * 2 if first < 0x90 else count
        if first < 0xC0:
            self._take(first & 0x1F)
        elif first in _PLAIN:
            self._take(_PLAIN[first])
        elif first in _ARRAY:
            return self._big_endian(_ARRAY[first])
        elif first in _MAP:
            return self._big_endian(_MAP[first]) * 2
        elif first in _EXT:
            self._take(self._big_endian(_EXT[first]) + 1)
        elif first in _BIN:
            self._take(self._big_endian(_BIN[first]))
        elif first in _STR:
            self._take(self._big_endian(_STR[first]))
        else:
            raise FormatError("no msgpack value", offset=start)
        return 0

    def _int_array(self) -> bytes:
        count = self.count()
        if (plain := self._plain_ints(count)) is not None:
            return plain
        if count > _MOST_ODD:
            raise FormatError(f"{count} numbers, not each in its shortest form", offset=self.at)
        data, at = self._data, self.at
        found = bytearray(count)
        try:
            for index in range(count):
                value = data[at]
                at += 1
                if value == 0xCC:
                    value = data[at]
                    at += 1
                elif value > 0x7F:  # 256 and more, or no number, or a number written too long
                    self.at = at - 1
                    value = self.integer()
                    at = self.at
                found[index] = value
        except IndexError as error:
            raise FormatError("data ends inside an array of numbers", offset=len(data)) from error
        except ValueError as error:
            if isinstance(error, FormatError):
                raise
            raise FormatError("number above 255 in an array of bytes", offset=at) from error
        self.at = at
        return bytes(found)

    def _plain_ints(self, count: int) -> bytes | None:
        """Read numbers of which each has its shortest form, without a step per number.

        Returns None where one is otherwise, and has read nothing then.
        """
        start = self.at
        # With cc as a number out of the way, every cc left is a mark.
        marked = self._data[start : start + 2 * count].replace(b"\xcc\xcc", b"\xcc\xff")
        end, longer = 0, count  # each mark among the bytes so far makes the array one byte longer
        while longer > end:
            end, longer = longer, longer + marked.count(0xCC, end, longer)
        kinds = marked[:end].translate(_KINDS)
        if len(kinds) < end or kinds.replace(b"\1\2", b"").strip(b"\0"):
            return None
        self.at += end
        pieces = self._data[start : self.at].split(b"\xcc\xcc")
        return b"\xcc".join([piece.replace(b"\xcc", b"") for piece in pieces])

    def _first(self) -> int:
        at = self.at
        if at >= len(self._data):
            raise FormatError("1 bytes wanted, 0 left", offset=at)
        self.at = at + 1
        return self._data[at]

    def _big_endian(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._data):
            left = len(self._data) - self.at
            raise FormatError(f"{size} bytes wanted, {left} left", offset=self.at)
        found = self._data[self.at : end]
        self.at = end
        return found
