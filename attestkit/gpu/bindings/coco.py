"""Additional evidence of Confidential Containers (nvidia-gpu.md, 6 and 6.1)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from attestkit._crypto.hashes import digest
from attestkit._formats.canonical_json import canonical_json
from attestkit.errors import FormatError, UsageError
from attestkit.gpu.bindings.answer_fields import HASH_SIZE, read_answer, text_member
from attestkit.gpu.bound_evidence import GpuBinding
from attestkit.gpu.device.report import Report
from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence

if TYPE_CHECKING:
    from attestkit._reasons import UsageReason

_WHAT: Final = "additional evidence"
_REPORT_DATA: Final = 64  # bytes
_HASHES: Final = ("sha256", "sha384", "sha512")


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
        gpu_nonce=digest(algorithm, _canonical(challenge))[:HASH_SIZE],
        report_data=digest(algorithm, _canonical(whole)).ljust(_REPORT_DATA, b"\0"),
        committed={"tee_pubkey": _canonical(dict(tee_pubkey))},
    )


def _without_padding(device: DeviceEvidence) -> DeviceEvidence:
    """Remove the one NUL that a driver's buffer may have after the signature."""
    try:
        report = Report.parse(device.report, strip_nul=True)
    except FormatError:
        return device  # refused when it is verified
    return replace(device, report=report.signed + report.signature)


def _canonical(value: object) -> bytes:
    """Return the canonical form of a value of the caller's; UsageError if it has none."""
    try:
        return canonical_json(value, "tee_pubkey")
    except FormatError as error:
        reason: UsageReason = "encoding" if error.reason == "encoding" else "wrong_value"
        raise UsageError(error.message, reason=reason) from error
