"""Result of the GPUs' verification by a dstack guest at boot (nvidia-gpu.md, section 6.1).

The guest runs NVIDIA's nvattest, whose tokens have no signature, and measures the SHA-256 of its
output. So it is a statement of the measured guest about itself, as of boot.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from attestkit._verification_steps import GpuReason, VerificationStep
from attestkit.errors import GpuEvidenceError
from attestkit.gpu.architectures import chip_of
from attestkit.gpu.nras.claims import DeviceClaims
from attestkit.gpu.nras.nvattest_output import NvattestOutput
from attestkit.gpu.result import DeviceResult, GpuResult
from attestkit.gpu.rules import GpuRules

_BY_GUEST: Final = (
    VerificationStep(
        "gpu_report",
        "caution",
        "the guest itself verified its GPUs at boot, with NVIDIA's nvattest; only its measured "
        "software proves it",
    ),
    VerificationStep("gpu_revocation", "skipped", "left to the guest at boot: no OCSP answers"),
    VerificationStep("gpu_rim", "skipped", "left to the guest at boot: no reference manifests"),
    VerificationStep("gpu_measurements", "skipped", "left to the guest at boot: no measurements"),
    VerificationStep(
        "gpu_topology",
        "skipped",
        "modes and connections were not checked: nvattest does not state them",
    ),
)


def appraise_boot_result(
    output: NvattestOutput, event: Mapping[str, Any], rules: GpuRules, now: datetime
) -> GpuResult:
    """Appraise output of nvattest whose hash is in the measured event log.

    Args:
        output: The output.
        event: Payload of the event with the hash, which has the number of devices.
        rules: Rules of the policy; `allow_boot_result` must be true.
        now: Time of the verification.

    Raises:
        GpuEvidenceError: If the rules do not accept such results (`binding`) or a device, or
            nvattest did not. `modes` if they forbid multi-GPU passthrough, `nras_result` if they
            need tokens of NVIDIA's service: the output has neither.
    """
    if not rules.allow_boot_result:
        raise _refused("without signatures", "binding", "gpu.allow_boot_result must be true")
    if not rules.allow_mpt:
        raise _refused("which states no modes", "modes", "gpu.allow_mpt is false")
    if rules.nras != "off":
        raise _refused("without signed tokens", "nras_result", f"gpu.nras is {rules.nras}")
    count = event.get("devices")
    if type(count) is not int:
        message = "GPU evidence: the measured event has no number of devices"
        raise GpuEvidenceError(message, reason="device_count")
    output.check(devices=count)
    devices = tuple(_device(at, claims) for at, claims in enumerate(output.devices))
    return GpuResult(
        devices=devices,
        steps=(*_BY_GUEST, *rules.appraise(devices)),
        nonce=devices[0].nonce,
        simulated=False,  # the evidence of the CPU decides
        verified_at=now,
        evidence_sha256=output.sha256,
    )


def _refused(lack: str, reason: GpuReason, rule: str) -> GpuEvidenceError:
    message = (
        f"GPU evidence: a result of nvattest of the boot, {lack}, but in the policy {rule}; "
        "request evidence of the GPUs, or change the policy"
    )
    return GpuEvidenceError(message, reason=reason, by_policy=True)


def _device(position: int, claims: DeviceClaims) -> DeviceResult:
    chip = chip_of(claims.hardware_model or "")
    if chip is None:
        message = f"GPU {position}: the claims name no known chip; update attestkit"
        raise GpuEvidenceError(message, reason="chip", device=position)
    return DeviceResult(
        position=position,
        kind=claims.kind,
        chip=chip.name,
        architecture=chip.architecture,
        driver_version=claims.driver_version,
        vbios_version=claims.vbios_version or "",
        device_serial="",
        pdi=b"",
        ueid=claims.ueid or "",
        mode=None,
        nvdec0=None,
        nonce=claims.nonce or b"",
        matched=0,
    )
