"""Evidence as Confidential Containers' attesters write it: JSON of guests with a TPM.

`platforms` has the TPM quote, the members of Azure's guests around it, and those of a TPM
without hardware evidence.
"""

import json
from typing import Final

from attestkit._formats.strict_json import read_object
from attestkit.attestation.coco import platforms
from attestkit.attestation.coco.platforms import read_bincode_quote
from attestkit.attestation.wire.evidence_parts import AzureSnp, AzureTdx, Evidence, Tpm
from attestkit.errors import FormatError, UsageError

__all__ = ["MAX_SIZE", "decode_evidence", "encode_evidence", "read_bincode_quote"]

MAX_SIZE: Final = 1 << 20
"""Largest size in bytes: 1 MiB. Evidence with arrays of numbers has about 36,000."""


def decode_evidence(data: bytes) -> Evidence:
    """Decode JSON with evidence of an Azure guest (generation 0, 1 or 2) or of a TPM alone.

    The report data are the qualifying data of the quote, zero-padded to 64 bytes.

    Raises:
        FormatError: If `data` is malformed, has an unknown generation, or is over 1 MiB.
    """
    if len(data) > MAX_SIZE:
        message = f"CoCo evidence: {len(data)} bytes, at most {MAX_SIZE}"
        raise FormatError(message, reason="too_large")
    fields = read_object(data, "CoCo evidence")
    read = platforms.read_generic_tpm if "ak_public" in fields else platforms.read_azure
    try:
        return read(fields)
    except FormatError as error:
        raise FormatError(f"CoCo evidence: {error.message}", reason=error.reason) from error


def encode_evidence(evidence: Evidence) -> bytes:
    """Encode evidence in JSON, without logs and without certificates of AMD's CAs and the AK.

    The format has no members for these. Evidence of Azure has generation 2 if the paravisor's user
    data are the report data, else generation 1, which does not state that.

    Raises:
        UsageError: If the evidence is of another platform, its quote is not over PCRs 0 to 23 of
            the SHA-256 bank, it has runtime events, a configuration or a payload of the report
            data, or a part is malformed; on Azure also if the quote is not RSASSA with SHA-256, or
            the VCEK is missing on SEV-SNP.
    """
    platform, stack = evidence
    if stack.runtime_events or stack.config or stack.report_data_payload is not None:
        message = "encoding coco: cannot represent runtime events and configuration; use cbor"
        raise UsageError(message, reason="not_applicable")
    if isinstance(platform, (AzureSnp, AzureTdx)):
        fields = platforms.build_azure(platform, stack.report_data)
    elif isinstance(platform, Tpm):
        fields = platforms.build_generic_tpm(platform)
    else:
        message = "encoding coco: only for Azure's guests and TPMs alone; use cbor"
        raise UsageError(message, reason="not_applicable")
    return json.dumps(fields, separators=(",", ":")).encode()
