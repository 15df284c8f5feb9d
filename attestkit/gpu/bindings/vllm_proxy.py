"""Answers of Phala's vllm-proxy, also RedPill's, NEAR's and Venice's (nvidia-gpu.md, 6.1)."""

from collections.abc import Mapping
from typing import Any, Final

from attestkit._crypto.hashes import sha256
from attestkit.gpu.bindings.answer_fields import (
    HASH_SIZE,
    check_nonce_size,
    hex_member,
    read_answer,
    text_member,
)
from attestkit.gpu.bound_evidence import GpuBinding
from attestkit.gpu.evidence import GpuEvidence

_WHAT: Final = "vllm-proxy answer"
_ADDRESS_SIZES: Final = (20, 32)  # ecdsa; the key of ed25519
_FINGERPRINT: Final = "tls_cert_fingerprint"


def read_vllm_proxy(answer: bytes | str | Mapping[str, Any], *, nonce: bytes) -> GpuBinding:
    """Read the answer of a model to `/v1/attestation/report`.

    Compare `committed`: `signing_address` with the key that signs completions, and
    `tls_cert_fingerprint` (of the SubjectPublicKeyInfo), if there is one, with the TLS connection.

    Args:
        answer: JSON, or its decoded object.
        nonce: Of the request, 32 bytes.

    Raises:
        FormatError: If the answer is malformed, or has no evidence of GPUs.
        UsageError: If the nonce is not 32 bytes.
    """
    check_nonce_size(nonce)
    members = read_answer(answer, _WHAT)
    payload = text_member(members, "nvidia_payload", _WHAT)
    committed = {"signing_address": hex_member(members, "signing_address", _WHAT, *_ADDRESS_SIZES)}
    fingerprint = None
    if members.get(_FINGERPRINT) is not None:
        fingerprint = hex_member(members, _FINGERPRINT, _WHAT, HASH_SIZE)
        committed[_FINGERPRINT] = fingerprint
    return GpuBinding(
        system="vllm-proxy",
        kind="nonce",
        evidence=GpuEvidence.from_json(payload),
        nonce=nonce,
        gpu_nonce=nonce,
        report_data=vllm_proxy_report_data(committed["signing_address"], nonce, fingerprint),
        committed=committed,
    )


def vllm_proxy_report_data(address: bytes, nonce: bytes, fingerprint: bytes | None) -> bytes:
    """Return the report data: an address, or its hash with a TLS key's, then the nonce."""
    if fingerprint is None:
        return address.ljust(HASH_SIZE, b"\0") + nonce
    return sha256(address + fingerprint) + nonce
