"""Verification of the evidence of GPUs and switches (nvidia-gpu.md, section 8).

Each device is checked up to its first failure, and all devices are checked. Nothing of a report is
used as true before its signature is verified.
"""

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from attestkit._argument_checks import require_bytes, require_size, require_time_zone, wrong_type
from attestkit._crypto.hashes import sha256
from attestkit._reasons import StepCheck, VerificationStep
from attestkit.errors import AttestKitError, GpuEvidenceError
from attestkit.gpu.device_checks import (
    CheckedDevice,
    DeviceChecks,
    check_device,
    check_revocation,
    join_errors,
)
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence
from attestkit.gpu.result import DeviceMode, DeviceResult, GpuResult, OcspFacts
from attestkit.gpu.rim_checks import ComparedDevice, compare_device
from attestkit.gpu.roots import GpuRoots
from attestkit.gpu.rules import GpuRules
from attestkit.gpu.topology import TopologyDevice, check_topology

if TYPE_CHECKING:
    from attestkit.gpu.report import Report

_NONCE_SIZE = 32
_DEVICE_CERTIFICATES = ("the device's boot ROM", "the provisioner's CA", "the product's CA")
_MODES: dict[int, DeviceMode] = {0: "single", 1: "multi", 2: "protected_pcie"}
_NAMED = 3  # manifests that a step names


class _Appraised(NamedTuple):
    """A device that passed all checks of its own."""

    device: CheckedDevice
    ocsp: tuple[OcspFacts, ...]
    compared: ComparedDevice | None  # None: tokens stand for manifests


def verify(
    evidence: GpuEvidence | bytes | str,
    *,
    nonce: bytes,
    now: datetime | None = None,
    endorsements: GpuEndorsements | None = None,
    roots: GpuRoots | None = None,
    rules: GpuRules | None = None,
) -> GpuResult:
    """Verify evidence of GPUs and switches offline, and return the result.

    What joins the devices to the evidence of a CPU is not checked: see `Verifier.verify`.

    Args:
        evidence: Evidence, or its JSON.
        nonce: The nonce that the verifier chose and all reports must have, 32 bytes.
        now: Time of the verification, with a time zone; None is the current time.
        endorsements: Reference manifests, OCSP answers and tokens.
        roots: Trust anchors; None are NVIDIA's.
        rules: Rules for the verification and the appraisal; None are the defaults.

    Raises:
        FormatError: If the JSON is malformed.
        GpuEvidenceError: If a device is not valid or not accepted. The error is that of the first
            such device; its text lists all.
        CollateralError: If endorsements are missing, and no device was rejected.
        UsageError: If an argument has the wrong type or size.
    """
    found = _as_evidence(evidence)
    require_bytes("nonce", nonce)
    require_size("nonce", nonce, _NONCE_SIZE)
    moment = datetime.now(timezone.utc) if now is None else now
    require_time_zone("now", moment)
    checks = DeviceChecks(
        nonce,
        moment,
        endorsements or GpuEndorsements(),
        roots or GpuRoots.nvidia(),
        rules or GpuRules(),
    )
    appraised = _check_all(found.devices, checks)
    steps = _steps(appraised, checks)
    steps.append(_check_machine(appraised, checks.rules))
    devices = tuple(map(_device_result, appraised))
    steps += checks.rules.appraise(devices)
    return GpuResult(
        devices=devices,
        steps=tuple(steps),
        nonce=nonce,
        simulated=not checks.roots.is_nvidia,
        verified_at=moment,
        evidence_sha256=sha256(found.raw),
    )


def _as_evidence(evidence: object) -> GpuEvidence:
    if isinstance(evidence, GpuEvidence):
        return evidence
    if isinstance(evidence, (bytes, str)):
        return GpuEvidence.from_json(evidence)
    raise wrong_type("GPU evidence", "GpuEvidence or its JSON", evidence)


def _check_all(devices: Sequence[DeviceEvidence], checks: DeviceChecks) -> tuple[_Appraised, ...]:
    """Check each device; raise for the first one that fails after all were checked."""
    found: list[_Appraised] = []
    errors: list[AttestKitError] = []
    for position, device in enumerate(devices):
        try:
            found.append(_check_one(position, device, checks))
        except AttestKitError as error:
            errors.append(error)
    if errors:
        raise join_errors(errors) from errors[0]
    return tuple(found)


def _check_one(position: int, device: DeviceEvidence, checks: DeviceChecks) -> _Appraised:
    checked = check_device(position, device, checks)
    path = checked.chain.path[1:]
    answers = check_revocation(position, path, _DEVICE_CERTIFICATES, "device_ocsp", checks)
    return _Appraised(checked, answers, compare_device(checked, checks))


def _check_machine(appraised: Sequence[_Appraised], rules: GpuRules) -> VerificationStep:
    """Check modes and topology; the step is that of the topology."""
    reports = [one.device.report for one in appraised]
    modes = {at: mode for at, one in enumerate(reports) if (mode := _mode(one)) is not None}
    first = next(iter(modes.values()), None)
    for at, mode in modes.items():
        if mode != first:
            message = f"GPU {at}: in mode {mode}, but GPU {min(modes)} is in mode {first}"
            raise GpuEvidenceError(message, reason="modes", device=at)
    devices = [TopologyDevice(one.device.chain, one.device.report) for one in appraised]
    if check_topology(devices):
        text = "every GPU is connected to exactly the switches of the evidence, and every switch "
        return _step("gpu_topology", f"{text}to exactly the GPUs")
    if rules.protected_pcie:
        message = (
            "GPU topology: the evidence has no switches; request their evidence, too, or drop the "
            "policy's gpu.protected_pcie"
        )
        raise GpuEvidenceError(message, reason="topology")
    if first == "protected_pcie":
        text = "the connections of the GPUs were not checked: the evidence has no switches"
        return VerificationStep("gpu_topology", "skipped", text)
    return _step("gpu_topology", "the devices are distinct, and have the same nonce")


def _mode(report: "Report") -> DeviceMode | None:
    if report.feature is not None:
        return _MODES.get(report.feature)
    return "protected_pcie" if report.protected_pcie else None


def _steps(appraised: Sequence[_Appraised], checks: DeviceChecks) -> list[VerificationStep]:
    """Return the steps of the checks of single devices."""
    gpus = sum(one.device.report.kind == "gpu" for one in appraised)
    what = f"{gpus} GPUs" if gpus != 1 else "1 GPU"
    if switches := len(appraised) - gpus:
        what += f" and {switches} switches"
    text = f"certificates, firmware identity, signature and nonce of {what} are valid"
    found = [_step("gpu_report", text), _revocation_step(appraised, checks.rules)]
    compared = [one.compared for one in appraised if one.compared is not None]
    names = list(dict.fromkeys(rim.identifier for one in compared for rim in one.rims))
    named = ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")
    found.append(_step("gpu_rim", f"the reference manifests are valid: {named}"))
    found.append(_measurement_step(compared))
    return found


def _revocation_step(appraised: Sequence[_Appraised], rules: GpuRules) -> VerificationStep:
    if rules.ocsp == "off":
        text = "revocation of the GPUs' certificates was not checked: the policy turns it off"
        return VerificationStep("gpu_revocation", "skipped", text)
    answers = [answer for one in appraised for answer in one.ocsp]
    answers += [answer for one in appraised if one.compared for answer in one.compared.ocsp]
    if any(answer.status == "hold" for answer in answers):
        text = "a certificate of a reference manifest's signer is on hold, which the policy accepts"
        return VerificationStep("gpu_revocation", "caution", text)
    until = min(answer.next_update for answer in answers)
    text = f"no certificate is revoked, by OCSP answers that are valid until {until.isoformat()}"
    return _step("gpu_revocation", text)


def _measurement_step(compared: Sequence[ComparedDevice]) -> VerificationStep:
    wrong = sorted({index for one in compared for index in one.comparison.mismatched})
    if wrong:
        indexes = ", ".join(map(str, wrong))
        text = f"measurements differ at indexes that the policy accepts: {indexes}"
        return VerificationStep("gpu_measurements", "caution", text)
    counts = sorted({len(one.comparison.matched) for one in compared})
    number = " or ".join(map(str, counts))
    text = f"{number} measurements of each device equal those of its reference manifests"
    return _step("gpu_measurements", text)


def _step(check: StepCheck, text: str) -> VerificationStep:
    return VerificationStep(check, "passed", text)


def _device_result(appraised: _Appraised) -> DeviceResult:
    (position, chain, report), ocsp, compared = appraised
    comparison = None if compared is None else compared.comparison
    return DeviceResult(
        position=position,
        kind=report.kind,
        chip=chain.chip.name,
        architecture=chain.chip.architecture,
        driver_version=report.driver_version,
        vbios_version=report.vbios_version,
        device_serial=chain.device_serial,
        pdi=chain.pdi,
        ueid=chain.ueid,
        mode=_mode(report),
        nvdec0=report.nvdec0,
        nonce=report.nonce,
        matched=0 if comparison is None else len(comparison.matched),
        skipped=() if comparison is None else comparison.skipped,
        mismatches=() if comparison is None else comparison.mismatched,
        rims=() if compared is None else compared.rims,
        ocsp=(*ocsp, *(() if compared is None else compared.ocsp)),
    )
