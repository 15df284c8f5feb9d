"""Cursor over the parameters of a command; errors are the response codes that a TPM gives.

`TpmModel.execute` returns the response codes.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from attestkit.tpm import response_codes as codes
from attestkit.tpm.algorithms import HASH_IDS, HASH_NAMES, LARGEST_DIGEST, hash_size
from attestkit.tpm.reader import encode_number

MAX_BANKS: Final = 4  # HASH_COUNT
MAX_NV_BUFFER: Final = 1024
LARGEST_DATA: Final = 2 + LARGEST_DIGEST  # TPM2B_DATA holds a TPMT_HA
_BITMAP_SIZE: Final = 3  # PCR_SELECT_MIN and PCR_SELECT_MAX

Selection = tuple[str, int]
"""A bank and its PCRs as a bitmap; PCR p is the bit 1 << p."""

_T = TypeVar("_T")


class TpmResponseError(Exception):
    """A command failed with a response code; `TpmModel.execute` returns it as a response."""

    def __init__(self, code: int) -> None:
        super().__init__(f"0x{code:03x}")
        self.code = code


def parameter_error(code: int, number: int) -> TpmResponseError:
    """Return an error with the response code `code` that names the parameter `number`, from 1.

    With 0, and for codes that cannot name one, it names none.
    """
    if not number or not code & codes.FORMAT_1:
        return TpmResponseError(code)
    return TpmResponseError(code | codes.PARAMETER | number << 8)


def handle_error(code: int, number: int) -> TpmResponseError:
    """Return an error with the response code `code` that names the handle `number`, from 1."""
    return TpmResponseError(code | number << 8)


def session_error(code: int, number: int) -> TpmResponseError:
    """Return an error with the response code `code` that names the session `number`, from 1."""
    return TpmResponseError(code | codes.SESSION | number << 8)


class CommandReader:
    """Cursor over the parameters in `data`, big-endian, from the byte `at`.

    Methods that read raise TpmResponseError if the data end too early, or a size or value is not
    valid; it names the parameter to which `next` has counted.
    """

    __slots__ = ("at", "data", "number")

    def __init__(self, data: bytes) -> None:
        self.data: bytes = data
        self.at: int = 0
        self.number: int = 0

    def next(self) -> "CommandReader":
        """Count the next parameter, for its number in errors, and return this reader."""
        self.number += 1
        return self

    def error(self, code: int) -> TpmResponseError:
        """Return an error with the response code `code` that names the current parameter."""
        return parameter_error(code, self.number)

    def take(self, size: int) -> bytes:
        """Read exactly `size` bytes; TpmResponseError if fewer are left."""
        end = self.at + size
        if end > len(self.data):
            raise self.error(codes.RC_INSUFFICIENT)
        found = self.data[self.at : end]
        self.at = end
        return found

    def u8(self) -> int:
        """Read an integer of one byte."""
        return self.take(1)[0]

    def u16(self) -> int:
        """Read an integer of two bytes."""
        return int.from_bytes(self.take(2), "big")

    def u32(self) -> int:
        """Read an integer of four bytes."""
        return int.from_bytes(self.take(4), "big")

    def u64(self) -> int:
        """Read an integer of eight bytes."""
        return int.from_bytes(self.take(8), "big")

    def sized(self, largest: int) -> bytes:
        """Return the content of a TPM2B; TpmResponseError if truncated or over `largest` bytes."""
        size = self.u16()
        if size > largest:
            raise self.error(codes.RC_SIZE)
        return self.take(size)

    def sized_structure(self, read: Callable[["CommandReader"], _T]) -> _T:
        """Read the content of a TPM2B by `read`; return its result.

        TpmResponseError if the size field is zero, or `read` reads fewer or more bytes than that.
        """
        size = self.u16()
        start = self.at
        if not size:
            raise self.error(codes.RC_SIZE)
        found = read(self)
        if self.at - start != size:
            raise self.error(codes.RC_SIZE)
        return found

    def hash_name(self) -> str:
        """Read TPMI_ALG_HASH; return the hash's name, such as "sha256"."""
        name = HASH_NAMES.get(self.u16())
        if name is None:
            raise self.error(codes.RC_HASH)
        return name

    def selections(self) -> list[Selection]:
        """Read TPML_PCR_SELECTION: pairs of a bank's hash and a bitmap, PCR p as bit 1 << p."""
        if (count := self.u32()) > MAX_BANKS:
            raise self.error(codes.RC_SIZE)
        return [self._selection() for _ in range(count)]

    def _selection(self) -> Selection:
        bank = self.hash_name()
        if self.u8() != _BITMAP_SIZE:
            raise self.error(codes.RC_VALUE)
        return bank, int.from_bytes(self.take(_BITMAP_SIZE), "little")

    def tagged_digests(self) -> list[tuple[str, bytes]]:
        """Read TPML_DIGEST_VALUES: pairs of a hash's name and a digest."""
        if (count := self.u32()) > MAX_BANKS:
            raise self.error(codes.RC_SIZE)
        found = []
        for _ in range(count):
            name = self.hash_name()
            found.append((name, self.take(hash_size(name))))
        return found

    def finish(self) -> None:
        """Raise TpmResponseError if bytes follow the parameters that were read."""
        if self.at != len(self.data):
            raise TpmResponseError(codes.RC_SIZE)


def encode_pcr_selections(selections: list[Selection]) -> bytes:
    """Return TPML_PCR_SELECTION of banks and bitmaps; a bank may occur twice, as TPMs accept."""
    return len(selections).to_bytes(4, "big") + b"".join(
        HASH_IDS[bank].to_bytes(2, "big")
        + bytes([_BITMAP_SIZE])
        + bits.to_bytes(_BITMAP_SIZE, "little")
        for bank, bits in selections
    )


u16: Final = partial(encode_number, size=2)
u32: Final = partial(encode_number, size=4)
u64: Final = partial(encode_number, size=8)
