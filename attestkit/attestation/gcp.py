"""OS image of a TD on Google Cloud: its UKI is the third event of PCR 2.

The quote of the TPM is verified elsewhere.
"""

import hmac
from collections.abc import Mapping
from typing import Final

from attestkit._formats.cbor import Value
from attestkit.attestation.wire.evidence_parts import TpmQuote
from attestkit.errors import FormatError, ReplayError, VerificationError
from attestkit.tpm.pcrs import extend

OVMF_PCR_0: Final = bytes.fromhex(
    "0cca9ec161b09288802e5a112255d21340ed5b797f5fe29cecccfd8f67b9f802"
)
"""PCR 0 (SHA-256) of Google's firmware for TDX, "OVMF v2" in dstack's texts."""

_UKI_EVENT: Final = 2  # after the separator and the GPT
_BANK: Final = "sha256"


def read_uki_hash(document: Mapping[Value, Value]) -> bytes:
    """Return the Authenticode hash of the UKI (32 bytes) in an image's measurement document.

    `document` is the decoded CBOR map.

    Raises:
        FormatError: If the document has other fields or another version.
    """
    if document.keys() != {"version", "uki_auth"}:
        message = "measurement.gcp.cbor: must have only version and uki_auth"
        raise FormatError(message, reason="unknown_field")
    version, found = document["version"], document["uki_auth"]
    if version != 1 or isinstance(version, bool):
        raise FormatError("measurement.gcp.cbor: version must be 1", reason="unsupported_version")
    if not isinstance(found, bytes) or len(found) != 32:
        raise FormatError("measurement.gcp.cbor: uki_auth must be 32 bytes", reason="wrong_value")
    return found


def check_boot(tpm_quote: TpmQuote, uki_hash: bytes) -> None:
    """Check firmware and UKI of a Google TD against PCRs and log of its TPM.

    `uki_hash` is the expected Authenticode hash of the UKI, 32 bytes.

    Raises:
        VerificationError: If PCR 0 is of another firmware, or PCR 2 of another UKI or of none
            (reason `os_image`).
        ReplayError: If the log does not replay to PCR 2.
        FormatError: If PCR 0 or 2 is not quoted.
    """
    pcr_0, pcr_2 = pcr_value(tpm_quote, 0), pcr_value(tpm_quote, 2)
    if not hmac.compare_digest(pcr_0, OVMF_PCR_0):
        message = f"PCR 0 mismatch: expected GCP OVMF v2, got {pcr_0.hex()}"
        raise VerificationError(message, reason="os_image")
    events = [event.digest for event in tpm_quote.event_log if event.pcr_index == 2]
    replayed = extend(_BANK, bytes(32), events)
    if not hmac.compare_digest(pcr_2, replayed):
        raise ReplayError(
            f"PCR 2 mismatch, quoted: {pcr_2.hex()}, replayed: {replayed.hex()}",
            reason="pcr_mismatch",
        )
    if len(events) <= _UKI_EVENT:
        raise VerificationError("Event 28 not found: PCR 2 has no UKI", reason="os_image")
    if not hmac.compare_digest(events[_UKI_EVENT], uki_hash):
        text = f"expected={uki_hash.hex()}, actual={events[_UKI_EVENT].hex()}"
        raise VerificationError(f"UKI hash mismatch: {text}", reason="os_image")


def pcr_value(tpm_quote: TpmQuote, index: int) -> bytes:
    """Return the value of PCR `index`, SHA-256 bank, 32 bytes; FormatError if it is not quoted."""
    for number, bank, value in tpm_quote.pcr_values:
        if (number, bank) == (index, _BANK):
            return value
    problem = f"TPM quote: PCR {index} is not quoted; request a quote that selects it"
    raise FormatError(problem, reason="missing")
