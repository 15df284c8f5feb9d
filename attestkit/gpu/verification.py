"""Verification of the evidence of GPUs and switches (nvidia-gpu.md, section 8).

Each device is checked up to its first failure, and all devices are checked. Nothing of a report is
used as true before its signature is verified.
"""

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Final, TypeVar

from attestkit._argument_checks import require_bytes, require_size, require_time_zone, wrong_type
from attestkit._crypto.hashes import sha256
from attestkit._verification_steps import VerificationStep
from attestkit.errors import AttestKitError, GpuEvidenceError, UsageError
from attestkit.gpu.checks.device_checks import (
    DeviceChecks,
    check_device,
    check_revocation,
    join_errors,
)
from attestkit.gpu.checks.rim_checks import compare_device
from attestkit.gpu.checks.topology import TopologyDevice, check_topology
from attestkit.gpu.checks.verification_steps import AppraisedDevice, device_steps
from attestkit.gpu.device.modes import check_modes, device_mode
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence
from attestkit.gpu.result import DeviceResult, GpuResult
from attestkit.gpu.roots import GpuRoots
from attestkit.gpu.rules import DEFAULT_RULES, GpuRules
from attestkit.simulated_roots import SimulatedRoots

_NONCE_SIZE: Final = 32
_DEVICE_CERTIFICATES: Final = ("the device's boot ROM", "the provisioner's CA", "the product's CA")


def verify(
    evidence: GpuEvidence | bytes | str,
    *,
    nonce: bytes,
    now: datetime | None = None,
    endorsements: GpuEndorsements | None = None,
    roots: GpuRoots | SimulatedRoots | None = None,
    rules: GpuRules | None = None,
) -> GpuResult:
    """Verify evidence of GPUs and switches offline, and return the result.

    The binding to the evidence of a CPU is not checked: see `Verifier.verify`.

    Args:
        evidence: Evidence, or its JSON.
        nonce: The nonce that the verifier chose and all reports must have, 32 bytes.
        now: Time of the verification, with a time zone; None is the current time.
        endorsements: Reference manifests, OCSP answers and tokens.
        roots: Trust anchors, or those of a simulated machine; None are NVIDIA's.
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
    moment = datetime.now(timezone.utc) if now is None else _in_utc(now)
    checks = DeviceChecks(
        nonce,
        moment,
        _given("endorsements", endorsements, GpuEndorsements) or GpuEndorsements(),
        GpuRoots.select(roots),
        _given("rules", rules, GpuRules) or DEFAULT_RULES,
    )
    appraised = _check_all(found.devices, checks)
    steps = [*device_steps(appraised, checks), _check_machine(appraised, checks.rules)]
    nras: tuple[dict[str, object], ...] | None = None
    if checks.rules.nras != "off":
        from attestkit.gpu.checks.nras_checks import check_tokens  # lazy: only with tokens

        step, nras = check_tokens([one.device for one in appraised], checks)
        steps.append(step)
    devices = tuple(map(_device_result, appraised))
    steps += checks.rules.appraise(devices)
    return GpuResult(
        devices=devices,
        steps=tuple(steps),
        nonce=nonce,
        simulated=not checks.roots.is_nvidia,
        verified_at=moment,
        evidence_sha256=sha256(found.raw),
        nras=nras,
    )


_Given = TypeVar("_Given")


def _given(name: str, value: _Given | None, kind: type[_Given]) -> _Given | None:
    if value is not None and not isinstance(value, kind):
        raise wrong_type(name, kind.__name__, value)
    return value


def _in_utc(now: object) -> datetime:
    """Return the time of the verification in UTC, in which all times are compared."""
    if not isinstance(now, datetime):
        raise wrong_type("now", "a datetime", now)
    require_time_zone("now", now)
    try:
        return now.astimezone(timezone.utc)
    except OverflowError as error:
        raise UsageError("now: outside the years 1 to 9999", reason="out_of_range") from error


def _as_evidence(evidence: object) -> GpuEvidence:
    if isinstance(evidence, GpuEvidence):
        return evidence
    if isinstance(evidence, (bytes, str)):
        return GpuEvidence.from_json(evidence)
    raise wrong_type("GPU evidence", "GpuEvidence or its JSON", evidence)


def _check_all(
    devices: Sequence[DeviceEvidence], checks: DeviceChecks
) -> tuple[AppraisedDevice, ...]:
    """Check each device; raise for the first one that fails after all were checked."""
    found: list[AppraisedDevice] = []
    errors: list[AttestKitError] = []
    for index, device in enumerate(devices):
        try:
            found.append(_check_one(index, device, checks))
        except AttestKitError as error:
            errors.append(error)
    if errors:
        raise join_errors(errors) from errors[0]
    return tuple(found)


def _check_one(index: int, device: DeviceEvidence, checks: DeviceChecks) -> AppraisedDevice:
    checked = check_device(index, device, checks)
    if checks.rules.nras == "instead":
        return AppraisedDevice(checked, (), None)
    path = checked.chain.path[1:]
    answers = check_revocation(checked.label, path, _DEVICE_CERTIFICATES, "device_ocsp", checks)
    return AppraisedDevice(checked, answers, compare_device(checked, checks))


def _check_machine(appraised: Sequence[AppraisedDevice], rules: GpuRules) -> VerificationStep:
    """Check modes and topology; the step is that of the topology."""
    reports = [one.device.report for one in appraised]
    first = check_modes(reports)
    devices = [TopologyDevice(one.device.chain, one.device.report) for one in appraised]
    if check_topology(devices):
        text = "every GPU is connected to exactly the switches of the evidence, and every switch "
        return VerificationStep("gpu_topology", "passed", f"{text}to exactly the GPUs")
    if rules.protected_pcie:
        message = (
            "GPU topology: the evidence has no switches; request their evidence, too, or drop the "
            "policy's gpu.protected_pcie"
        )
        raise GpuEvidenceError(message, reason="topology", by_policy=True)
    switches = sum(one.kind == "switch" for one in reports)
    if first == "protected_pcie" or switches:
        missing = "GPUs" if switches else "switches"
        text = f"the connections of the devices were not checked: the evidence has no {missing}"
        return VerificationStep("gpu_topology", "skipped", text)
    text = "the devices are distinct, and have the same nonce"
    return VerificationStep("gpu_topology", "passed", text)


def _device_result(appraised: AppraisedDevice) -> DeviceResult:
    (label, chain, report), ocsp, compared = appraised
    comparison = None if compared is None else compared.comparison
    return DeviceResult(
        position=label.number,
        kind=report.kind,
        chip=chain.chip.name,
        architecture=chain.chip.architecture,
        driver_version=report.driver_version,
        vbios_version=report.vbios_version,
        device_serial=chain.device_serial,
        pdi=chain.pdi,
        ueid=chain.ueid,
        mode=device_mode(report),
        nvdec0=report.nvdec0,
        nonce=report.nonce,
        matched=0 if comparison is None else len(comparison.matched),
        skipped=() if comparison is None else comparison.skipped,
        mismatches=() if comparison is None else comparison.mismatched,
        rims=() if compared is None else compared.rims,
        ocsp=(*ocsp, *(() if compared is None else compared.ocsp)),
        matched_indexes=() if comparison is None else comparison.matched,
    )
