"""Cursor over a structure of a TPM: big-endian integers, and bytes after a 16-bit size (TPM2B)."""

from struct import Struct
from typing import Any, ClassVar, Final

from attestkit._argument_checks import wrong_type
from attestkit._formats.binary_layout import Cursor
from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError, UsageError
from attestkit.tpm.algorithms import HASH_NAMES

_LARGEST_TPM2B: Final = 0xFFFF


class TpmReader(Cursor):
    """Cursor over `data`; all methods raise FormatError, whose text begins with `subject`.

    Args:
        data: The structure.
        subject: Its name in errors, such as `TPMS_ATTEST`.

    Raises:
        UsageError: If `data` is not exactly of type `bytes`.
    """

    __slots__ = ("subject",)

    CODEC: ClassVar[str] = "TPM structure"

    def __init__(self, data: bytes, subject: str) -> None:
        if type(data) is not bytes:  # slices of a subclass could be overridden
            raise wrong_type(subject, "bytes", data)
        super().__init__(data)
        self.subject: str = subject

    def error(self, problem: str, reason: FormatReason, offset: int) -> FormatError:
        """Return the error for a value at the byte `offset`; `problem` describes the fault."""
        return FormatError(f"{self.subject}: {problem}", reason=reason, offset=offset)

    def u8(self) -> int:
        """Read an unsigned integer of one byte."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Read an unsigned integer of two bytes, big-endian."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """Read an unsigned integer of four bytes, big-endian."""
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        """Read an unsigned integer of eight bytes, big-endian."""
        return int.from_bytes(self.take(8), "big")

    def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """Read the fields of a layout, which must be big-endian; return their values."""
        return layout.unpack(self.take(layout.size))

    def sized(self, field: str, largest: int = _LARGEST_TPM2B) -> bytes:
        """Read a TPM2B, a 16-bit size and so many bytes, and return the bytes.

        At most `largest` bytes are accepted; errors name the `field`.
        """
        start = self.at
        size = self.u16()
        if size > largest:
            problem = f"{field} must have at most {largest} bytes, not {size}"
            raise self.error(problem, "too_large", start)
        return self.take(size)

    def hash_name(self, field: str) -> str:
        """Read a hash's identifier; return its name, such as "sha256". Errors name the `field`."""
        start = self.at
        name = HASH_NAMES.get(number := self.u16())
        if name is None:
            problem = f"{field}: unsupported hash algorithm 0x{number:04x}"
            raise self.error(problem, "unsupported_algorithm", start)
        return name

    def end(self) -> None:
        """Raise FormatError unless all bytes were read."""
        self.finish(self.subject)


def encode_sized(data: bytes) -> bytes:
    """Return `data` after its size in two bytes (TPM2B).

    Raises:
        UsageError: If `data` has more than 65,535 bytes.
    """
    if len(data) > _LARGEST_TPM2B:
        message = f"TPM2B: must have at most {_LARGEST_TPM2B} bytes, not {len(data)}"
        raise UsageError(message, reason="too_large")
    return len(data).to_bytes(2, "big") + data


def encode_number(value: int, size: int) -> bytes:
    """Return `value`, an unsigned integer, in `size` bytes, big-endian.

    Raises:
        UsageError: If it does not fit.
    """
    if not 0 <= value < 1 << 8 * size:
        message = f"TPM structure: {value} does not fit in {size} bytes"
        raise UsageError(message, reason="out_of_range")
    return value.to_bytes(size, "big")
