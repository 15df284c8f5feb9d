"""Digest of quoted PCR values (TPM 2.0 Library, Part 2, section 10.12.1: pcrDigest)."""

from collections.abc import Iterable, Mapping

from attestkit.errors import FormatError
from attestkit.tpm.algorithms import compute_digest, hash_size
from attestkit.tpm.pcr_selection import PcrSelection


def pcr_digest(
    selections: Iterable[PcrSelection], values: Mapping[tuple[str, int], bytes], hash_name: str
) -> bytes:
    """Return the digest of PCR values in the order of their selection.

    Args:
        selections: Banks in their order; the values of each count by ascending number.
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
