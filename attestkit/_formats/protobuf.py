"""Protocol Buffers on the wire (protobuf.dev, Encoding): strict reader and a writer.

A message is a series of fields in any order. This reader returns them in order of appearance; the
caller checks which may occur more than once. Varints must be minimal, and groups, which no current
schema uses, are refused.
"""

from typing import Final, NamedTuple

from attestkit._formats.binary_layout import Cursor
from attestkit.errors import FormatError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of fields (protobuf.dev, Encoding)."""

MAX_FIELDS: Final = 4_096
"""Most fields of one message."""

_MAX_NUMBER: Final = (1 << 29) - 1
_FIXED: Final = {FIXED64: 8, FIXED32: 4}
_NAMES: Final = {VARINT: "a varint", FIXED64: "64 bits", BYTES: "bytes", FIXED32: "32 bits"}


class ProtobufField(NamedTuple):
    """One field of a message."""

    number: int
    wire_type: int
    value: int | bytes  # bytes of a field of wire type BYTES, else a number
    offset: int  # of the field's tag in the data of the reader, in bytes

    def bytes_value(self, what: str) -> bytes:
        """Return the value of a field of type bytes, string or message; `what` is for errors.

        Raises:
            FormatError: If it has another wire type.
        """
        if not isinstance(self.value, bytes):
            raise self._wrong(what, BYTES)
        return self.value

    def number_value(self, what: str, bits: int = 64) -> int:
        """Return the value of a field of an unsigned integer type; `what` is for errors.

        Raises:
            FormatError: If it has another wire type, or does not fit in `bits`.
        """
        if self.wire_type != VARINT or isinstance(self.value, bytes):
            raise self._wrong(what, VARINT)
        if self.value >> bits:
            message = f"{what}: does not fit in {bits} bits"
            raise FormatError(message, reason="wrong_value", offset=self.offset)
        return self.value

    def _wrong(self, what: str, expected: int) -> FormatError:
        message = f"{what}: must be {_NAMES[expected]}, not {_NAMES[self.wire_type]}"
        return FormatError(message, reason="wrong_type", offset=self.offset)


class ProtobufReader(Cursor):
    """Reader of one message."""

    CODEC = "protobuf"

    def read_fields(self) -> list[ProtobufField]:
        """Return all fields, in their order.

        Raises:
            FormatError: If the message is malformed, or has more than 4,096 fields.
        """
        fields: list[ProtobufField] = []
        while self.remaining:
            if len(fields) == MAX_FIELDS:
                raise self.error(f"more than {MAX_FIELDS} fields", "too_many", self.at)
            fields.append(self._field())
        return fields

    def _field(self) -> ProtobufField:
        start = self.at
        tag = self.varint()
        number, wire_type = tag >> 3, tag & 7
        if not 1 <= number <= _MAX_NUMBER:
            raise self.error(f"field number {number} out of range", "wrong_value", start)
        value: int | bytes
        if wire_type == VARINT:
            value = self.varint()
        elif wire_type == BYTES:
            value = self.take(self.varint())
        elif size := _FIXED.get(wire_type):
            value = int.from_bytes(self.take(size), "little")
        else:
            raise self.error(f"unsupported wire type {wire_type}", "unsupported", start)
        return ProtobufField(number, wire_type, value, start)

    def varint(self) -> int:
        """Read a varint; FormatError over 64 bits, or if it is not in its shortest form."""
        start, value = self.at, 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and not byte:
                    raise self.error("varint is not minimal", "not_canonical", start)
                if value >> 64:
                    break
                return value
        raise self.error("varint has more than 64 bits", "wrong_value", start)


def encode_varint(value: int) -> bytes:
    """Encode `value`, an unsigned integer of at most 64 bits, as a varint."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_bytes_field(number: int, value: bytes) -> bytes:
    """Encode field `number` of type bytes, string or message, whose encoding is `value`."""
    return encode_varint(number << 3 | BYTES) + encode_varint(len(value)) + value


def encode_number_field(number: int, value: int) -> bytes:
    """Encode field `number` of an unsigned integer type: tag, and `value` as a varint."""
    return encode_varint(number << 3 | VARINT) + encode_varint(value)
