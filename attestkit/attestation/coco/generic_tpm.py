"""A TPM without hardware evidence in the JSON of Confidential Containers (vtpm.md, section 10)."""

from base64 import b64encode
from typing import Any, Final

from attestkit._formats.strict_json import from_base64, from_hex
from attestkit.attestation.coco.quote_fields import (
    PCR_SIZE,
    member,
    quoted_values,
    read_quote,
    report_data_of,
)
from attestkit.attestation.wire.evidence_parts import Evidence, Stack, Tpm
from attestkit.errors import FormatError, UsageError
from attestkit.tpm import TpmtPublic

_SEQUENCE: Final = b"\x30"  # first byte of a SubjectPublicKeyInfo, never of a TPMT_PUBLIC


def read_fields(fields: dict[str, Any]) -> Evidence:
    """Return the evidence in a decoded document.

    Raises:
        FormatError: If a member is missing or malformed.
    """
    key = member(fields, "ak_public", from_base64)
    quote = read_quote(fields.get("tpm_quote"), _bytes, bare_signature=False, ak_public=key)
    return Evidence(Tpm(quote), Stack(report_data_of(quote), (), ""))


def _bytes(value: object, what: str) -> bytes:
    """Decode a PCR in hex, and the other byte strings in standard base64."""
    return from_hex(value, what, PCR_SIZE) if what == "pcrs" else from_base64(value, what)


def build_fields(platform: Tpm) -> dict[str, Any]:
    """Return the document.

    Raises:
        UsageError: If the quote is of other PCRs, or the key is malformed.
    """
    quote = platform.vtpm_quote
    return {
        "ak_public": b64encode(_spki(quote.ak_public)).decode(),
        "tpm_quote": {
            "signature": b64encode(quote.signature).decode(),
            "message": b64encode(quote.message).decode(),
            "pcrs": [value.hex() for value in quoted_values(quote)],
        },
    }


def _spki(key: bytes) -> bytes:
    if key[:1] == _SEQUENCE:
        return key
    try:
        return TpmtPublic.parse(key).spki
    except FormatError as error:
        raise UsageError(f"encoding coco: {error}", reason="wrong_value") from error
