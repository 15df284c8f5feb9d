"""Answers of Chutes, and of RedPill for models of Chutes (nvidia-gpu.md, 6.1)."""

import json
from collections.abc import Mapping
from typing import Any, Final

from attestkit._argument_checks import require_bytes, require_size
from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._formats import strict_json
from attestkit.errors import FormatError
from attestkit.gpu.bindings.answer_fields import HASH_SIZE, check_nonce_size, read_answer
from attestkit.gpu.bound_evidence import GpuBinding
from attestkit.gpu.evidence import GpuEvidence

_WHAT: Final = "Chutes answer"
_MAX_KEY: Final = 8192  # characters of a public key


def read_chutes(
    entry: bytes | str | Mapping[str, Any],
    *,
    nonce: bytes,
    e2e_pubkey: str,
    spki_sha256: bytes | None = None,
) -> GpuBinding:
    """Read the evidence of one instance.

    Args:
        entry: An item of `evidence`, or of `all_attestations` of RedPill: JSON or its decoded
            object.
        nonce: Of the request, 32 bytes.
        e2e_pubkey: The instance's key in base64, to which the caller will encrypt.
        spki_sha256: SHA-256 of the key of the instance's certificate, 32 bytes; None takes the
            certificate of the entry.

    Raises:
        FormatError: If the entry is malformed, or has no certificate and `spki_sha256` is None.
        UsageError: If an argument has the wrong type or size.
    """
    check_nonce_size(nonce)
    members = read_answer(entry, _WHAT)
    devices = members.get("gpu_evidence")
    if not isinstance(devices, list):
        raise FormatError(f"{_WHAT}: gpu_evidence: must be a list", reason="wrong_type")
    if spki_sha256 is None:
        der = strict_json.from_base64(members.get("certificate"), f"{_WHAT}: certificate")
        spki_sha256 = sha256(read_path_certificate(der).spki)
    require_bytes("spki_sha256", spki_sha256)
    require_size("spki_sha256", spki_sha256, HASH_SIZE)
    report_data = chutes_report_data(nonce, e2e_pubkey, spki_sha256)
    return GpuBinding(
        system="chutes",
        kind="nonce",
        evidence=GpuEvidence.from_json(json.dumps(devices)),
        nonce=nonce,
        gpu_nonce=report_data[:HASH_SIZE],
        report_data=report_data,
        committed={"spki_sha256": spki_sha256},
    )


def chutes_report_data(nonce: bytes, e2e_pubkey: str, spki_sha256: bytes) -> bytes:
    """Return the report data: a hash over nonce and key as text, then that of a certificate's key.

    Raises:
        FormatError: If the key is not ASCII text of up to 8,192 characters.
    """
    if len(e2e_pubkey) > _MAX_KEY or not e2e_pubkey.isascii():
        raise FormatError(f"{_WHAT}: e2e_pubkey: must be base64", reason="encoding")
    return sha256((nonce.hex() + e2e_pubkey).encode("ascii")) + spki_sha256
