"""Additional evidence of Confidential Containers (nvidia-gpu.md, 6 and 6.1)."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from attestkit._crypto.hashes import digest
from attestkit._formats import strict_json
from attestkit.errors import FormatError, UsageError
from attestkit.gpu.bindings.answer_fields import HASH_SIZE, read_answer, text_member
from attestkit.gpu.bound_evidence import GpuBinding
from attestkit.gpu.device.report import Report
from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence

_WHAT: Final = "additional evidence"
_REPORT_DATA: Final = 64  # bytes
_HASHES: Final = ("sha256", "sha384", "sha512")
_NUMBERS: Final = 1 << 53  # JSON numbers that all parsers agree on


def read_coco(
    additional_evidence: str,
    *,
    nonce: str,
    tee_pubkey: Mapping[str, Any],
    algorithm: str = "sha384",
) -> GpuBinding:
    """Read additional evidence with GPUs, which the CPU's report data commit to.

    Args:
        additional_evidence: The text as sent: JSON with a member `nvidia`.
        nonce: Of the challenge, text as sent to the guest.
        tee_pubkey: The guest's key, a JWK without fractional numbers.
        algorithm: The negotiated hash: sha256, sha384 or sha512.

    Raises:
        FormatError: If the evidence is malformed.
        UsageError: If the hash is unknown, or the key has a value that is not supported.
    """
    if algorithm not in _HASHES:
        message = f"algorithm: must be one of {', '.join(_HASHES)}"
        raise UsageError(message, reason="unsupported_algorithm")
    members = read_answer(additional_evidence, _WHAT)
    devices = text_member(members, "nvidia", _WHAT)
    challenge: dict[str, Any] = {"nonce": nonce, "tee-pubkey": dict(tee_pubkey)}
    whole = {**challenge, "additional-evidence": additional_evidence}
    found = GpuEvidence.from_json(devices)
    return GpuBinding(
        system="coco",
        kind="report_data",
        evidence=GpuEvidence(tuple(map(_without_padding, found.devices)), found.raw),
        nonce=nonce.encode(),
        gpu_nonce=digest(algorithm, canonical_json(challenge))[:HASH_SIZE],
        report_data=digest(algorithm, canonical_json(whole)).ljust(_REPORT_DATA, b"\0"),
        committed={"tee_pubkey": canonical_json(dict(tee_pubkey))},
    )


def _without_padding(device: DeviceEvidence) -> DeviceEvidence:
    """Remove the one NUL that a driver's buffer may have after the signature."""
    try:
        report = Report.parse(device.report, strip_nul=True)
    except FormatError:
        return device  # refused when it is verified
    return replace(device, report=report.signed + report.signature)


def canonical_json(value: object) -> bytes:
    """Return JSON in canonical form (RFC 8785), of values without fractional numbers.

    Raises:
        UsageError: If a value is not text, an integer below 2^53, a boolean, null, a list, or an
            object with ASCII names.
    """
    _check_canonical(value, 0)
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def _check_canonical(value: object, depth: int) -> None:
    if depth > strict_json.MAX_DEPTH:
        raise UsageError("tee_pubkey: nests too deeply", reason="too_many")
    if isinstance(value, dict):
        if not all(isinstance(name, str) and name.isascii() for name in value):
            raise UsageError("tee_pubkey: names must be ASCII text", reason="encoding")
        parts = list(value.values())
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    elif _is_scalar(value):
        return
    else:
        raise UsageError("tee_pubkey: has a value that is not supported", reason="wrong_type")
    for part in parts:
        _check_canonical(part, depth + 1)


def _is_scalar(value: object) -> bool:
    """Return whether a value is text without unpaired surrogates, an integer, boolean or null."""
    if isinstance(value, str):
        return not any("\ud800" <= letter <= "\udfff" for letter in value)
    return value is None or (isinstance(value, int) and abs(value) < _NUMBERS)
