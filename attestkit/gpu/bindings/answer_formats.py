"""Readers of answers of other systems with evidence of GPUs.

Of vllm-proxy (Phala, RedPill, NEAR, Venice), Chutes, Confidential Containers and SecretVM.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from attestkit._argument_checks import require_bytes, utf8, wrong_type
from attestkit._crypto.hashes import digest, sha256
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._formats import strict_json
from attestkit._formats.canonical_json import canonical_json
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError
from attestkit.gpu.device.report import Report
from attestkit.gpu.evidence import DeviceEvidence, GpuBinding, GpuEvidence

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import UsageReason

MAX_ANSWER: Final = 16 << 20
"""Maximum size of an answer in bytes."""
HASH_SIZE: Final = 32  # bytes of SHA-256, and of a nonce
_VLLM_PROXY: Final = "vllm-proxy answer"
_ADDRESS_SIZES: Final = (20, 32)  # ecdsa; the key of ed25519
_FINGERPRINT: Final = "tls_cert_fingerprint"
_CHUTES: Final = "Chutes answer"
_MAX_KEY: Final = 8192  # characters of a public key
_COCO: Final = "additional evidence"
_REPORT_DATA: Final = 64  # bytes
_HASHES: Final = ("sha256", "sha384", "sha512")


def read_answer(answer: bytes | str | Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the members of an answer: of JSON text, or of an object that is decoded.

    JSON with duplicate keys is malformed; a caller that decodes it has to refuse them as well.
    `what` is the name of the answer, with which errors begin.

    Raises:
        FormatError: If the answer is malformed, not an object, or over 16 MiB.
        UsageError: If `answer` has another type.
    """
    if isinstance(answer, Mapping):
        return dict(answer)
    if not isinstance(answer, (bytes, str)):
        raise wrong_type(what, "bytes, str or a mapping", answer)
    if len(answer) > MAX_ANSWER:
        message = f"{what}: {len(answer)} bytes, at most {MAX_ANSWER}"
        raise FormatError(message, reason="too_large")
    return strict_json.read_object(answer, what)


def check_nonce_size(nonce: bytes) -> None:
    """Raise UsageError unless a nonce is 32 bytes."""
    require_bytes("nonce", nonce, HASH_SIZE)


def hex_member(members: Mapping[str, Any], name: str, what: str, *sizes: int) -> bytes:
    """Return the bytes of the member `name`, which is hex and may begin with 0x.

    Raises:
        FormatError: If the member is missing, not hex, or its size in bytes is not one of `sizes`.
            The message begins with `what`.
    """
    text = strict_json.string(members, name, what=what)
    found = strict_json.from_hex(text.removeprefix("0x"), f"{what}: {name}")
    if len(found) not in sizes:
        wanted = " or ".join(map(str, sizes))
        message = f"{what}: {name}: {len(found)} bytes, must be {wanted}"
        raise FormatError(message, reason="wrong_size")
    return found


def read_vllm_proxy(answer: bytes | str | Mapping[str, Any], *, nonce: bytes) -> GpuBinding:
    """Read the answer of a vllm-proxy to `/v1/attestation/report`.

    The caller must compare the items of the result's `committed`: `signing_address` with the
    address of the key that signs completions; `tls_cert_fingerprint`, if present, with the
    SHA-256 of the TLS connection's SubjectPublicKeyInfo.

    Args:
        answer: The answer: JSON, or its decoded object.
        nonce: Nonce of the request, 32 bytes.

    Raises:
        FormatError: If the answer is malformed, or has no evidence of GPUs.
        UsageError: If an argument has the wrong type, or the nonce is not 32 bytes.
    """
    check_nonce_size(nonce)
    members = read_answer(answer, _VLLM_PROXY)
    payload = strict_json.string(members, "nvidia_payload", what=_VLLM_PROXY)
    committed = {
        "signing_address": hex_member(members, "signing_address", _VLLM_PROXY, *_ADDRESS_SIZES)
    }
    fingerprint = None
    if members.get(_FINGERPRINT) is not None:
        fingerprint = hex_member(members, _FINGERPRINT, _VLLM_PROXY, HASH_SIZE)
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
    """Return the CPU's report data, 64 bytes: 32 bytes of address or hash, then the nonce.

    The first part is the zero-padded address or, with the fingerprint of a TLS key, the SHA-256 of
    address and fingerprint.

    Args:
        address: The signing address, in bytes: an Ethereum address (20), or a key (32).
        nonce: Nonce of the request, 32 bytes.
        fingerprint: SHA-256 of the TLS key, 32 bytes; None without one.
    """
    if fingerprint is None:
        return address.ljust(HASH_SIZE, b"\0") + nonce
    return sha256(address + fingerprint) + nonce


def read_chutes(
    entry: bytes | str | Mapping[str, Any],
    *,
    nonce: bytes,
    e2e_pubkey: str,
    spki_sha256: bytes | None = None,
) -> GpuBinding:
    """Read the GPU evidence of one instance of Chutes.

    Args:
        entry: An item of `evidence`, or of `all_attestations` of RedPill: JSON or its decoded
            object.
        nonce: Nonce of the request, 32 bytes.
        e2e_pubkey: The instance's key in base64, to which the caller will encrypt.
        spki_sha256: SHA-256 of the key of the instance's certificate, 32 bytes; None takes the
            certificate of the entry.

    Raises:
        FormatError: If the entry is malformed, lacks a certificate without `spki_sha256`, or
            `e2e_pubkey` is not ASCII text of up to 8,192 characters.
        UsageError: If an argument has the wrong type, or a nonce or hash the wrong size.
    """
    check_nonce_size(nonce)
    members = read_answer(entry, _CHUTES)
    devices = members.get("gpu_evidence")
    if not isinstance(devices, list):
        raise strict_json.wrong_json_type(f"{_CHUTES}: gpu_evidence", "a list", devices)
    if spki_sha256 is None:
        der = strict_json.from_base64(members.get("certificate"), f"{_CHUTES}: certificate")
        spki_sha256 = sha256(read_path_certificate(der).spki)
    require_bytes("spki_sha256", spki_sha256, HASH_SIZE)
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
    """Return the CPU's report data: SHA-256 of nonce (hex) and key (text), then `spki_sha256`.

    `nonce` has 32 bytes, `e2e_pubkey` is the instance's key in base64, `spki_sha256` is the hash
    (32 bytes) of its certificate's key.

    Raises:
        FormatError: If `e2e_pubkey` is not ASCII text of up to 8,192 characters.
        UsageError: If `e2e_pubkey` is not a string.
    """
    if not isinstance(e2e_pubkey, str):
        raise wrong_type("e2e_pubkey", "str", e2e_pubkey)
    if len(e2e_pubkey) > _MAX_KEY or not e2e_pubkey.isascii():
        text = f"{_CHUTES}: e2e_pubkey: must be base64 of at most {_MAX_KEY} characters"
        raise FormatError(text, reason="encoding")
    return sha256((nonce.hex() + e2e_pubkey).encode("ascii")) + spki_sha256


def read_coco(
    additional_evidence: str,
    *,
    nonce: str,
    tee_pubkey: Mapping[str, Any],
    algorithm: str = "sha384",
) -> GpuBinding:
    """Read the additional evidence of a guest of Confidential Containers with GPUs.

    The report data of the CPU evidence contain its hash.

    Args:
        additional_evidence: The text as sent: JSON with a member `nvidia`.
        nonce: Nonce of the challenge, as the text that was sent to the guest.
        tee_pubkey: The guest's key, a JWK without fractional numbers.
        algorithm: The negotiated hash: sha256, sha384 or sha512.

    Raises:
        FormatError: If the evidence is malformed.
        UsageError: If an argument has the wrong type, the hash is unknown, the nonce is not valid
            text, or the key has a value that is not supported.
    """
    for name, value in (("additional_evidence", additional_evidence), ("nonce", nonce)):
        if not isinstance(value, str):
            raise wrong_type(name, "str", value)
    if not isinstance(tee_pubkey, Mapping):
        raise wrong_type("tee_pubkey", "a mapping", tee_pubkey)
    if algorithm not in _HASHES:
        message = f"algorithm: must be one of {', '.join(_HASHES)}, not {shown(algorithm)}"
        raise UsageError(message, reason="unsupported_algorithm")
    members = read_answer(additional_evidence, _COCO)
    devices = strict_json.string(members, "nvidia", what=_COCO)
    challenge: dict[str, Any] = {"nonce": nonce, "tee-pubkey": dict(tee_pubkey)}
    whole = {**challenge, "additional-evidence": additional_evidence}
    found = GpuEvidence.from_json(devices)
    return GpuBinding(
        system="coco",
        kind="report_data",
        evidence=GpuEvidence(tuple(map(_without_padding, found.devices)), found.raw),
        nonce=utf8(nonce, "nonce", UsageError),
        gpu_nonce=digest(algorithm, _canonical(challenge))[:HASH_SIZE],
        report_data=digest(algorithm, _canonical(whole)).ljust(_REPORT_DATA, b"\0"),
        committed={"tee_pubkey": _canonical(dict(tee_pubkey))},
    )


def _without_padding(device: DeviceEvidence) -> DeviceEvidence:
    """Return the evidence without the NUL that a driver's buffer may have after the signature."""
    try:
        report = Report.parse(device.report, strip_nul=True)
    except FormatError:
        return device  # refused when it is verified
    return replace(device, report=report.signed + report.signature)


def _canonical(value: object) -> bytes:
    """Return a caller's value as canonical JSON; UsageError if it cannot be encoded."""
    try:
        return canonical_json(value, "tee_pubkey")
    except FormatError as error:
        reason: UsageReason = "encoding" if error.reason == "encoding" else "wrong_value"
        raise UsageError(error.message, reason=reason) from error


def read_secretvm(evidence: bytes | str, *, nonce: bytes, tls_sha256: bytes) -> GpuBinding:
    """Read the GPU evidence of a SecretVM.

    Args:
        evidence: GPU evidence in the JSON of NVIDIA's SDKs.
        nonce: Nonce of the request, 32 bytes.
        tls_sha256: SHA-256 of the TLS key or certificate of the connection, 32 bytes.

    Raises:
        FormatError: If the evidence is malformed.
        UsageError: If an argument has the wrong type or size.
    """
    check_nonce_size(nonce)
    require_bytes("tls_sha256", tls_sha256, HASH_SIZE)
    return GpuBinding(
        system="secretvm",
        kind="nonce",
        evidence=GpuEvidence.from_json(evidence),
        nonce=nonce,
        gpu_nonce=nonce,
        report_data=tls_sha256 + nonce,
        committed={"tls_sha256": tls_sha256},
    )
