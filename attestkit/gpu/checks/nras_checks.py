"""Tokens of NVIDIA's remote attestation service (NRAS) about devices that were checked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from attestkit._verification_steps import VerificationStep
from attestkit.errors import CollateralError, FormatError, GpuEvidenceError
from attestkit.gpu.nras.tokens import verify_tokens

if TYPE_CHECKING:
    from attestkit.gpu.checks.device_checks import CheckedDevice, DeviceChecks
    from attestkit.gpu.nras.claims import DeviceClaims

_MISSING: Final = (
    "NRAS tokens: missing, but the policy's gpu.nras uses them; request them from NVIDIA's service "
    "and keep them with its keys among the endorsements"
)
_NO_KEYS: Final = (
    "NRAS keys: missing; pass the service's keys among the verifier's own endorsements: keys in a "
    "bundle or of an attester are not used, because nothing signs them"
)


def check_tokens(
    devices: Sequence["CheckedDevice"], checks: "DeviceChecks"
) -> tuple[VerificationStep, tuple[dict[str, object], ...]]:
    """Verify the tokens, and that there is one for each device.

    Args:
        devices: Devices whose chains, reports and nonces are valid.
        checks: Settings of the verification.

    Returns:
        The step, and the claims of the token of each device, in their order.

    Raises:
        GpuEvidenceError: If a token is not valid, or is missing for a device.
        CollateralError: If there are no tokens or no keys.
    """
    endorsements = checks.endorsements
    if not endorsements.nras:
        raise CollateralError(_MISSING, reason="missing")
    if endorsements.jwks is None:
        raise CollateralError(_NO_KEYS, reason="missing")
    found: dict[str, DeviceClaims] = {}
    for answer in endorsements.nras:
        try:
            result = verify_tokens(
                answer,
                endorsements.jwks,
                checks.nonce,
                checks.now,
                allow_hold=checks.rules.allow_hold,
            )
        except FormatError as error:
            raise GpuEvidenceError(str(error), reason="nras_result") from error
        found |= {claims.ueid or "": claims for claims in result.devices}
    claims = tuple([dict(_claims_of(device, found).claims) for device in devices])
    text = f"NVIDIA's service accepted each of the {len(devices)} devices, by its tokens"
    return VerificationStep("gpu_nras", "passed", text), claims


def _claims_of(device: "CheckedDevice", found: "dict[str, DeviceClaims]") -> "DeviceClaims":
    """Return the claims about a device, which name the serial number of its leaf certificate."""
    claims = found.get(device.chain.ueid)
    # Fewer claims are required of a switch.
    if claims is None or claims.kind != device.report.kind:
        raise device.label.error("no NRAS token is about this device", "nras_result")
    report = device.report
    pairs = [(claims.vbios_version, report.vbios_version)]
    if report.driver_version is not None:
        pairs.append((claims.driver_version, report.driver_version))
    for stated, signed in pairs:
        if (stated or "").upper() != signed.upper():
            problem = "the NRAS token is about another driver or VBIOS than the report"
            raise device.label.error(problem, "nras_result")
    return claims
