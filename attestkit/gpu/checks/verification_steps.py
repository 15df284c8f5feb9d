"""Steps of a verification: what was checked of the devices, in sentences."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from attestkit._crypto.x509.ocsp.check import CLOCK_SKEW
from attestkit._verification_steps import StepCheck, VerificationStep
from attestkit.gpu.checks.device_checks import CheckedDevice, DeviceChecks
from attestkit.gpu.checks.rim_checks import ComparedDevice
from attestkit.gpu.result import OcspFacts

_NAMED: Final = 3  # manifests that a step names


class AppraisedDevice(NamedTuple):
    """A device that passed all checks of its own."""

    device: CheckedDevice
    ocsp: tuple[OcspFacts, ...]
    compared: ComparedDevice | None  # None: tokens stand for manifests


def device_steps(
    appraised: Sequence[AppraisedDevice], checks: DeviceChecks
) -> tuple[VerificationStep, ...]:
    """Return the steps of the checks of single devices."""
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
    rims = _step("gpu_rim", f"the reference manifests are valid: {named}")
    return report, _revocation_step(appraised, checks), rims, _measurement_step(compared)


def _report_step(appraised: Sequence[AppraisedDevice], what: str) -> VerificationStep:
    """Return the step of the reports; those of switches have no FWID."""
    reports = [one.device.report for one in appraised]
    gpus = [report for report in reports if report.kind == "gpu"]
    text = f"certificates, signature and nonce of {what} are valid"
    if None in [report.fwid for report in gpus]:
        text += "; a report lacks the firmware's identity (FWID), which the policy accepts"
        return VerificationStep("gpu_report", "caution", text)
    return _step("gpu_report", text + (", and the GPUs' firmware identity" if gpus else ""))


def _revocation_step(
    appraised: Sequence[AppraisedDevice], checks: DeviceChecks
) -> VerificationStep:
    if checks.rules.ocsp == "off":
        text = "revocation of the GPUs' certificates was not checked: the policy turns it off"
        return VerificationStep("gpu_revocation", "skipped", text)
    answers = [answer for one in appraised for answer in one.ocsp]
    answers += [answer for one in appraised if one.compared for answer in one.compared.ocsp]
    if "hold" in {answer.status for answer in answers}:
        text = "a certificate of a reference manifest's signer is on hold, which the policy accepts"
        return VerificationStep("gpu_revocation", "caution", text)
    until = min([answer.next_update for answer in answers])
    if checks.now - until > CLOCK_SKEW:
        text = f"an OCSP answer ended at {until.isoformat()}, which the policy's grace accepts"
        return VerificationStep("gpu_revocation", "caution", text)
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


_BY_TOKENS: Final = (
    VerificationStep(
        "gpu_revocation", "skipped", "left to NVIDIA's service: the policy accepts its tokens"
    ),
    VerificationStep(
        "gpu_rim", "skipped", "left to NVIDIA's service: no reference manifests were compared"
    ),
    VerificationStep(
        "gpu_measurements", "skipped", "left to NVIDIA's service, whose tokens name no measurements"
    ),
)
