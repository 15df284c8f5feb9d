"""Evidence in msgpack, wire version 1; agents use it if an event has version 2.

Bytes have two representations: quote, report, certificates and report data are arrays of integers,
digests and payloads have the type bin. The decoder accepts both for all of them.
"""

from attestkit.attestation.wire import v1_document
from attestkit.attestation.wire.evidence_parts import Evidence
from attestkit.attestation.wire.scale import MAX_SKIPPED
from attestkit.attestation.wire.v1_document import IntArray
from attestkit.errors import FormatError, UsageError

__all__ = ["FIRST_BYTES", "MsgpackReader", "decode_evidence", "encode_evidence"]

FIRST_BYTES = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])

# Evidence of a TD up to the quote, as agents write it.
_TDX_START = b"\x83\xa7version\1\xa8platform\x82\xa4kind\xa3tdx\xa4data\x82\xa5quote"

# Class of each byte in an array of integers: 0 positive fixint, 1 the prefix cc (uint 8), 2 other.
_BYTE_CLASSES = bytes([byte >> 7 << (byte != 0xCC) for byte in range(256)])

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


def decode_evidence(data: bytes) -> Evidence:
    """Decode evidence.

    Raises:
        FormatError: If `data` is malformed, has another version, or has trailing bytes.
    """
    if data.startswith(_TDX_START) and (found := _tdx(data)) is not None:
        return found
    return v1_document.decode_document(MsgpackReader(data), len(data), "msgpack")


def _tdx(data: bytes) -> Evidence | None:
    """Decode evidence of a TD in the form that agents write; return None for any other form."""
    from attestkit.attestation.wire import v1_tdx_fast  # lazy: it imports msgspec

    reader = MsgpackReader(data, len(_TDX_START))
    try:
        quote = reader.blob()
    except FormatError:
        return None
    return v1_tdx_fast.decode_evidence(quote, data[reader.at :])


def encode_evidence(evidence: Evidence) -> bytes:
    """Encode evidence in msgpack.

    Raises:
        UsageError: If a text has unpaired surrogates.
    """
    import msgspec.msgpack  # lazy: only needed for this encoding

    try:
        return msgspec.msgpack.encode(_with_int_arrays(v1_document.build_tree(evidence)))
    except UnicodeEncodeError as error:
        raise UsageError("msgpack: unpaired surrogate in text", reason="encoding") from error


def _with_int_arrays(value: object) -> object:
    if isinstance(value, IntArray):
        return list(value)
    if isinstance(value, dict):
        return {key: _with_int_arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_int_arrays(item) for item in value]
    return value


class MsgpackReader:
    """Cursor over `data`; every method reads one value and advances past it.

    All methods raise FormatError, with the offset of the invalid value. None is recursive.
    """

    __slots__ = ("_data", "_skipped", "at")

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self._skipped = 0
        self.at: int = at

    def header(self) -> tuple[bool, int]:
        """Read the head of a map or array; return whether it is a map, and its entries."""
        start = self.at
        first = self._first()
        if first & 0xF0 == 0x80:
            return True, first & 0x0F
        if first in _MAP:
            return True, self._big_endian(_MAP[first])
        self.at = start
        return False, self.count()

    def count(self) -> int:
        """Read the head of an array; return its number of items, at most the remaining bytes."""
        start = self.at
        first = self._first()
        if first & 0xF0 == 0x90:
            count = first & 0x0F
        elif first in _ARRAY:
            count = self._big_endian(_ARRAY[first])
        else:
            raise _wrong_type("a map or an array", start)
        if count > (left := len(self._data) - self.at):
            message = f"msgpack: truncated: {count} items, {left} bytes left"
            raise FormatError(message, reason="truncated", offset=start)
        return count

    def integer(self) -> int:
        """Read an unsigned integer of at most 64 bits."""
        start = self.at
        first = self._first()
        if first < 0x80:
            return first
        if first not in _UINT:
            raise _wrong_type("an unsigned integer", start)
        return self._big_endian(_UINT[first])

    def text(self) -> str:
        """Read a string."""
        start = self.at
        first = self._first()
        if first & 0xE0 == 0xA0:
            size = first & 0x1F
        elif first in _STR:
            size = self._big_endian(_STR[first])
        else:
            raise _wrong_type("a string", start)
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as error:
            message = "msgpack: text is not UTF-8"
            raise FormatError(message, reason="encoding", offset=start) from error

    def blob(self) -> bytes:
        """Read bytes: a bin, or an array of integers below 256."""
        start = self.at
        first = self._first()
        if first in _BIN:
            return self._take(self._big_endian(_BIN[first]))
        self.at = start
        return self._int_array()

    def nil(self) -> bool:
        """Return whether the next value is nil, and read it if so."""
        found = self._data[self.at : self.at + 1] == b"\xc0"
        self.at += found
        return found

    def skip(self) -> None:
        """Skip one value of any depth; a reader skips at most 1,048,576 values in all."""
        data, left = self._data, 1
        while left:
            self._skipped += 1
            if self._skipped > MAX_SKIPPED:
                message = f"msgpack: more than {MAX_SKIPPED} unknown values"
                raise FormatError(message, reason="too_many", offset=self.at)
            if self.at < len(data) and data[self.at] <= 0x80:  # fixint or empty map
                self.at += 1
                left -= 1
            else:
                left += self._skip_head() - 1

    def _skip_head(self) -> int:
        """Skip a value without the values inside of it; return the number of those."""
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
            message = f"msgpack: invalid initial byte 0x{first:02x}"
            raise FormatError(message, reason="syntax", offset=start)
        return 0

    def _int_array(self) -> bytes:
        count = self.count()
        if (found := self._canonical_ints(count)) is not None:
            return found
        if count > _MOST_NON_CANONICAL:
            message = f"msgpack: array of {count} integers: one is not in its shortest form"
            raise FormatError(message, reason="not_canonical", offset=self.at)
        data, at = self._data, self.at
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
            message = "msgpack: truncated inside an array of bytes"
            raise FormatError(message, reason="truncated", offset=len(data)) from error
        except ValueError as error:
            if isinstance(error, FormatError):
                raise
            message = "msgpack: integer above 255 in an array of bytes"
            raise FormatError(message, reason="wrong_value", offset=at) from error
        self.at = at
        return bytes(values)

    def _canonical_ints(self, count: int) -> bytes | None:
        """Read integers below 256 that all have their shortest form, without a loop over them.

        Returns None, and reads nothing, if one has another form.
        """
        start = self.at
        # Replace the value cc, so that every remaining cc is a prefix.
        marked = self._data[start : start + 2 * count].replace(b"\xcc\xcc", b"\xcc\xff")
        end, longer = 0, count  # each prefix among the bytes so far adds one byte to the array
        while longer > end:
            end, longer = longer, longer + marked.count(0xCC, end, longer)
        classes = marked[:end].translate(_BYTE_CLASSES)
        if len(classes) < end or classes.replace(b"\1\2", b"").strip(b"\0"):
            return None
        self.at += end
        pieces = self._data[start : self.at].split(b"\xcc\xcc")
        return b"\xcc".join([piece.replace(b"\xcc", b"") for piece in pieces])

    def _first(self) -> int:
        at = self.at
        if at >= len(self._data):
            raise _truncated(1, 0, at)
        self.at = at + 1
        return self._data[at]

    def _big_endian(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._data):
            raise _truncated(size, len(self._data) - self.at, self.at)
        found = self._data[self.at : end]
        self.at = end
        return found


def _wrong_type(expected: str, at: int) -> FormatError:
    return FormatError(f"msgpack: expected {expected}", reason="wrong_type", offset=at)


def _truncated(size: int, left: int, at: int) -> FormatError:
    message = f"msgpack: truncated: {size} bytes expected, {left} left"
    return FormatError(message, reason="truncated", offset=at)
