"""Verification of the evidence of GPUs and switches, and its steps.

Each device is checked up to its first failure, and all devices are checked. Nothing of a report is
used as true before its signature is verified.
"""

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Final, NamedTuple, TypeVar

from attestkit._argument_checks import require_bytes, require_time_zone, wrong_type
from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.ocsp.check import CLOCK_SKEW
from attestkit._outcomes.steps import VerificationStep, caution, passed, skipped
from attestkit.errors import AttestKitError, GpuEvidenceError, UsageError
from attestkit.gpu.checks.device_checks import (
    CheckedDevice,
    DeviceChecks,
    check_device,
    check_revocation,
    check_tokens,
    join_errors,
)
from attestkit.gpu.checks.rim_checks import ComparedDevice, compare_device
from attestkit.gpu.device.topology import TopologyDevice, check_modes, check_topology, device_mode
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence
from attestkit.gpu.result import DeviceResult, GpuResult, OcspFacts
from attestkit.gpu.roots import GpuRoots
from attestkit.gpu.rules import DEFAULT_RULES, GpuRules
from attestkit.simulated_roots import SimulatedRoots

_NAMED: Final = 3  # manifests that a step names
_NONCE_SIZE: Final = 32
_DEVICE_CERTIFICATES: Final = ("the device's boot ROM", "the provisioner's CA", "the product's CA")


class AppraisedDevice(NamedTuple):
    """A device that passed all checks except those that compare devices."""

    device: CheckedDevice
    ocsp: tuple[OcspFacts, ...]
    compared: ComparedDevice | None  # None if tokens replace manifests


def device_steps(
    appraised: Sequence[AppraisedDevice], checks: DeviceChecks
) -> tuple[VerificationStep, ...]:
    """Return the steps that summarize the checks of single devices.

    They are about reports, OCSP, RIMs and measurements. With tokens in place of RIMs, the last
    three are skipped.
    """
    gpus = [one.device.report.kind for one in appraised].count("gpu")
    what = f"{gpus} GPUs" if gpus != 1 else "1 GPU"
    if switches := len(appraised) - gpus:
        what += f" and {switches} switches"
    report = _report_step(appraised, what)
    compared = [one.compared for one in appraised if one.compared is not None]
    if not compared:
        return (report, *_BY_TOKENS)
    names = list(dict.fromkeys([rim.identifier for one in compared for rim in one.rims]))
    named = ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")
    rims = passed("gpu_rim", f"the reference manifests are valid: {named}")
    return report, _revocation_step(appraised, checks), rims, _measurement_step(compared)


def _report_step(appraised: Sequence[AppraisedDevice], what: str) -> VerificationStep:
    """Return the step about the reports; `what` names the devices. Switches have no FWID."""
    reports = [one.device.report for one in appraised]
    gpus = [report for report in reports if report.kind == "gpu"]
    text = f"certificates, signature and nonce of {what} are valid"
    if None in [report.fwid for report in gpus]:
        text += "; a report lacks the firmware's identity (FWID), which the policy accepts"
        return caution("gpu_report", text)
    return passed("gpu_report", text + (", and the GPUs' firmware identity" if gpus else ""))


def _revocation_step(
    appraised: Sequence[AppraisedDevice], checks: DeviceChecks
) -> VerificationStep:
    if checks.rules.ocsp == "off":
        text = "revocation of the GPUs' certificates was not checked: the policy turns it off"
        return skipped("gpu_revocation", text)
    answers = [answer for one in appraised for answer in one.ocsp]
    answers += [answer for one in appraised if one.compared for answer in one.compared.ocsp]
    if "hold" in {answer.status for answer in answers}:
        text = "a certificate of a reference manifest's signer is on hold, which the policy accepts"
        return caution("gpu_revocation", text)
    until = min([answer.next_update for answer in answers])
    if checks.now - until > CLOCK_SKEW:
        text = f"an OCSP answer ended at {until.isoformat()}, which the policy's grace accepts"
        return caution("gpu_revocation", text)
    text = f"no certificate is revoked, by OCSP answers that are valid until {until.isoformat()}"
    return passed("gpu_revocation", text)


def _measurement_step(compared: Sequence[ComparedDevice]) -> VerificationStep:
    wrong = sorted({index for one in compared for index in one.comparison.mismatched})
    if wrong:
        indexes = ", ".join(map(str, wrong))
        text = f"measurements differ at indexes that the policy accepts: {indexes}"
        return caution("gpu_measurements", text)
    counts = sorted({len(one.comparison.matched) for one in compared})
    number = " or ".join(map(str, counts))
    text = f"{number} measurements of each device equal those of its reference manifests"
    return passed("gpu_measurements", text)


_BY_TOKENS: Final = (
    skipped("gpu_revocation", "left to NVIDIA's service: the policy accepts its tokens"),
    skipped("gpu_rim", "left to NVIDIA's service: no reference manifests were compared"),
    skipped("gpu_measurements", "left to NVIDIA's service, whose tokens name no measurements"),
)


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
        now: Time of the verification, an aware datetime; None is the current time.
        endorsements: Reference manifests, OCSP answers and tokens; None has none of them.
        roots: Trust anchors, or those of a simulated machine; None are NVIDIA's.
        rules: Rules for the verification and the appraisal; None are the defaults.

    Raises:
        FormatError: If the JSON is malformed.
        GpuEvidenceError: If a device is not valid or not accepted, or modes and connections of the
            devices do not fit together. The error is that of the first such device; its text lists
            all devices that are not valid.
        CollateralError: If endorsements are missing or unusable, and no device was rejected.
        UsageError: If an argument has the wrong type or size.
    """
    found = _as_evidence(evidence)
    require_bytes("nonce", nonce, _NONCE_SIZE)
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
    """Return `now` in UTC; UsageError if it is not an aware datetime."""
    if not isinstance(now, datetime):
        raise wrong_type("now", "a datetime", now)
    require_time_zone("now", now)
    try:
        return now.astimezone(timezone.utc)
    except OverflowError as error:
        raise UsageError("now: must be in the years 1 to 9999", reason="out_of_range") from error


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
    """Check modes and topology of the devices, and return the step about the topology."""
    reports = [one.device.report for one in appraised]
    first = check_modes(reports)
    devices = [TopologyDevice(one.device.chain, one.device.report) for one in appraised]
    if check_topology(devices):
        text = "every GPU is connected to exactly the switches of the evidence, and every switch "
        return passed("gpu_topology", f"{text}to exactly the GPUs")
    if rules.protected_pcie:
        message = (
            "GPU topology: the evidence must have switches; request their evidence, too, or drop "
            "the policy's gpu.protected_pcie"
        )
        raise GpuEvidenceError(message, reason="topology", by_policy=True)
    switches = sum(one.kind == "switch" for one in reports)
    if first == "protected_pcie" or switches:
        missing = "GPUs" if switches else "switches"
        text = f"the connections of the devices were not checked: the evidence has no {missing}"
        return skipped("gpu_topology", text)
    text = "the devices are distinct, and have the same nonce"
    return passed("gpu_topology", text)


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
