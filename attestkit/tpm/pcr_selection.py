"""PCRs that a quote selects (TPML_PCR_SELECTION), and the digest of their values (pcrDigest).

TPM 2.0 Library, Part 2, sections 10.9.7 and 10.12.1.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from attestkit.errors import FormatError, UsageError
from attestkit.tpm.algorithms import HASH_IDS, compute_digest, hash_size
from attestkit.tpm.reader import TpmReader

MAX_BANKS: Final = 16
_LARGEST_BITMAP: Final = 4  # bytes
_USUAL_BITMAP: Final = 3  # bytes: 24 PCRs, and the least that a TPM of a PC accepts


class PcrSelection(NamedTuple):
    """Selected PCRs of one bank (TPMS_PCR_SELECTION)."""

    bank: str  # name of its hash, such as "sha256"
    pcrs: tuple[int, ...]  # ascending, 0 to 31; may be empty
    bitmap_size: int = _USUAL_BITMAP  # bytes on the wire

    def encode(self) -> bytes:
        """Return the TPMS_PCR_SELECTION.

        Raises:
            UsageError: If the bank is unknown, the bitmap over 4 bytes, or the PCRs are not
                ascending and below 8 * `bitmap_size`.
        """
        hash_size(self.bank)  # raises for an unknown bank
        if not 0 <= self.bitmap_size <= _LARGEST_BITMAP:
            message = f"PCR bitmap: {self.bitmap_size} bytes, must be 0 to {_LARGEST_BITMAP}"
            raise UsageError(message, reason="out_of_range")
        for last, pcr in zip((-1, *self.pcrs), self.pcrs, strict=False):
            if not last < pcr < 8 * self.bitmap_size:
                message = (
                    f"PCR selection: PCR {pcr} must be below {8 * self.bitmap_size}, and above the "
                    "previous one; pass ascending numbers"
                )
                raise UsageError(message, reason="out_of_range")
        head = HASH_IDS[self.bank].to_bytes(2, "big") + bytes([self.bitmap_size])
        return head + sum(1 << pcr for pcr in self.pcrs).to_bytes(self.bitmap_size, "little")


def read_selections(reader: TpmReader) -> tuple[PcrSelection, ...]:
    """Read a TPML_PCR_SELECTION: at most 16 different banks, and 32 PCRs of each.

    Raises:
        FormatError: If it is malformed, has an unknown bank, or the same bank twice.
    """
    start = reader.at
    count = reader.u32()
    if count > MAX_BANKS:
        problem = f"must have at most {MAX_BANKS} PCR banks, not {count}"
        raise reader.error(problem, "too_many", start)
    selections: list[PcrSelection] = []
    for _ in range(count):
        start = reader.at
        selection = _read_selection(reader)
        if any(other.bank == selection.bank for other in selections):
            raise reader.error(f"PCR bank {selection.bank} occurs twice", "duplicate", start)
        selections.append(selection)
    return tuple(selections)


def _read_selection(reader: TpmReader) -> PcrSelection:
    bank = reader.hash_name("PCR bank")
    start = reader.at
    size = reader.u8()
    if size > _LARGEST_BITMAP:
        problem = f"bitmap of PCRs must have at most {_LARGEST_BITMAP} bytes, not {size}"
        raise reader.error(problem, "too_large", start)
    bits = int.from_bytes(reader.take(size), "little")  # PCR p is bit p % 8 of byte p / 8
    return PcrSelection(bank, _selected_pcrs(bits), size)


@lru_cache(maxsize=256)
def _selected_pcrs(bits: int) -> tuple[int, ...]:
    return tuple([pcr for pcr in range(bits.bit_length()) if bits >> pcr & 1])


def encode_selections(selections: tuple[PcrSelection, ...]) -> bytes:
    """Return the TPML_PCR_SELECTION of one selection for each bank.

    Raises:
        UsageError: If there are more than 16 banks, the same one twice, or a selection is invalid.
    """
    if len(selections) > MAX_BANKS:
        message = f"PCR selection: must have at most {MAX_BANKS} banks, not {len(selections)}"
        raise UsageError(message, reason="too_many")
    if len({selection.bank for selection in selections}) != len(selections):
        raise UsageError("PCR selection: a bank occurs twice", reason="conflict")
    return len(selections).to_bytes(4, "big") + b"".join(one.encode() for one in selections)


def pcr_digest(
    selections: Iterable[PcrSelection], values: Mapping[tuple[str, int], bytes], hash_name: str
) -> bytes:
    """Return the digest of PCR values (pcrDigest of a quote).

    Args:
        selections: Banks in the hashed order; within a bank, PCRs are hashed by ascending number.
        values: Values by bank and number, such as `("sha256", 7)`: exactly those selected.
        hash_name: Hash of the signature, which need not be that of the bank.

    Raises:
        FormatError: If a selected value is missing, a value was not selected, or a value does not
            have the size of its bank's digests.
        UsageError: If a hash is unknown.
    """
    selected: dict[tuple[str, int], bytes] = {}
    for selection in selections:
        bank, size = selection.bank, hash_size(selection.bank)
        for pcr in selection.pcrs:
            value = values.get((bank, pcr))
            if value is None:
                raise FormatError(f"PCR values: {bank} PCR {pcr} is missing", reason="missing")
            if len(value) != size:
                message = f"PCR values: {bank} PCR {pcr} must have {size} bytes"
                raise FormatError(f"{message}, not {len(value)}", reason="wrong_size")
            selected[bank, pcr] = value
    if len(values) != len(selected):
        bank, pcr = min(values.keys() - selected.keys())
        message = f"PCR values: {bank} PCR {pcr} is not in the selection of the quote"
        raise FormatError(message, reason="inconsistent")
    return compute_digest(hash_name, b"".join(selected.values()))
