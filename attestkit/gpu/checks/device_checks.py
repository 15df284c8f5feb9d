"""Checks of one device, in the order of their steps: from its report to its modes."""

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._crypto.x509.ocsp.check import OcspStatus
from attestkit._outcomes.steps import VerificationStep, passed
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    GpuEvidenceError,
    SignatureError,
    VerificationError,
)
from attestkit.gpu.architectures import DeviceLabel
from attestkit.gpu.device.device_chain import DeviceChain
from attestkit.gpu.device.report import Report
from attestkit.gpu.evidence import DeviceEvidence, verify_device
from attestkit.gpu.nras.claims import DeviceClaims
from attestkit.gpu.nras.tokens import verify_tokens
from attestkit.gpu.result import OcspFacts

if TYPE_CHECKING:
    from attestkit._crypto.x509.cert_path import PathCertificate
    from attestkit._outcomes.steps import GpuReason
    from attestkit.gpu.endorsements import GpuEndorsements
    from attestkit.gpu.roots import GpuRoots
    from attestkit.gpu.rules import GpuRules

_NO_TOKENS: Final = (
    "NRAS tokens: missing, but the policy's gpu.nras uses them; request them from NVIDIA's service "
    "and keep them with its keys among the endorsements"
)
_NO_KEYS: Final = (
    "NRAS keys: missing; pass the service's keys among the verifier's own endorsements: keys in a "
    "bundle or of an attester are not used, because nothing signs them"
)
_NO_GRACE: Final = timedelta()


@dataclass(frozen=True, slots=True)
class DeviceChecks:
    """Settings and expected values of one verification, which all its devices share."""

    nonce: bytes  # of all reports, 32 bytes
    now: datetime
    endorsements: "GpuEndorsements"
    roots: "GpuRoots"
    rules: "GpuRules"


class CheckedDevice(NamedTuple):
    """A device whose certificates, report and nonce are valid."""

    label: DeviceLabel
    chain: DeviceChain
    report: Report


def check_device(index: int, device: "DeviceEvidence", checks: DeviceChecks) -> CheckedDevice:
    """Check format, certificates, keys, signature and nonce of a device with this index.

    Raises:
        GpuEvidenceError: If a check fails.
    """
    label = DeviceLabel(device.kind, index)
    report, chain = verify_device(
        *(device, label, checks.roots.device, checks.now),
        strip_nul=checks.rules.allow_trailing_nul,
    )
    with label.refused_as("device_chain"):
        _check_chip(device, chain, report)
    label = DeviceLabel(chain.chip.kind, index)  # signed, unlike the stated one
    if not chain.has_device_key:
        problem = "the leaf certificate has a key that is not that of the device's boot ROM"
        raise label.error(problem, "device_key")
    _check_fwid(label, chain, report, checks.rules)
    with label.refused_as("report_signature"):
        report.verify_signature(chain.leaf_spki)
    if not hmac.compare_digest(report.nonce, checks.nonce):
        problem = (
            f"the nonce is {report.nonce.hex()}, must be {checks.nonce.hex()}; request new "
            "evidence with this nonce"
        )
        raise label.error(problem, "nonce")
    return CheckedDevice(label, chain, report)


def _check_chip(device: "DeviceEvidence", chain: DeviceChain, report: Report) -> None:
    chip = chain.chip
    for problem, stated, signed in (
        (f"the evidence states {device.architecture}", device.architecture, chip.architecture),
        (f"the report is of a {report.kind}", report.kind, chip.kind),
        (f"the report is of a {report.chip_info}", report.chip_info, chip.name),
    ):
        if stated is not None and stated != signed:
            message = f"{problem}, the certificates are of a {chip.name}"
            raise SignatureError(message, reason="unexpected_subject")


def _check_fwid(label: DeviceLabel, chain: DeviceChain, report: Report, rules: "GpuRules") -> None:
    if report.fwid is None:
        if report.kind == "gpu" and not rules.allow_absent_fwid:
            problem = (
                "the report does not have the firmware's identity (FWID), as of drivers 535 and "
                "545; update the driver, or set the policy's gpu.allow_absent_fwid"
            )
            raise label.error(problem, "fwid")
        return
    if not hmac.compare_digest(report.fwid, chain.fwid):
        problem = "the firmware's identity (FWID) is not that of the leaf certificate"
        raise label.error(problem, "fwid")


def check_revocation(
    label: DeviceLabel,
    path: Sequence["PathCertificate"],
    names: Sequence[str],
    reason: "GpuReason",
    checks: DeviceChecks,
) -> tuple[OcspFacts, ...]:
    """Check the OCSP answers about the certificates of a path, and return what they state.

    Nothing is checked or returned if the rules turn OCSP off.

    Args:
        label: Name of the device.
        path: A verified path: the certificates to check, and the issuer of the last one.
        names: Names of the certificates to check, for errors and `OcspFacts`; no more are checked.
        reason: Reason of the error about a revoked certificate or invalid answer.
        checks: Settings of the verification.

    Raises:
        GpuEvidenceError: If a certificate is revoked or on hold (unless the rules allow it), or
            none of the answers is valid for it.
        CollateralError: If the endorsements contain no OCSP answer at all.
    """
    if checks.rules.ocsp == "off":
        return ()
    found = []
    with label.refused_as(reason):
        for name, subject, issuer in zip(names, path, path[1:], strict=False):
            status = _ocsp_status(name, subject, issuer, checks)
            # NVIDIA puts signers of manifests on hold, and no CA.
            is_signer = reason != "device_ocsp" and subject is path[0]
            allowed = checks.rules.allow_hold and is_signer
            if status.status == "revoked" or (status.status == "hold" and not allowed):
                why = "on hold" if status.status == "hold" else f"revoked ({status.reason})"
                raise label.error(f"the certificate of {name} is {why}", reason)
            found.append(OcspFacts(name, status.status, status.this_update, status.next_update))
    return tuple(found)


def _ocsp_status(
    name: str, subject: "PathCertificate", issuer: "PathCertificate", checks: DeviceChecks
) -> OcspStatus:
    answers = checks.endorsements.ocsp
    if not answers:
        message = (
            f"OCSP answer about {name}: missing; fetch the endorsements, or set the policy's "
            "gpu.ocsp to off"
        )
        raise CollateralError(message, reason="missing")
    try:
        rules = checks.rules
        return checks.endorsements.ocsp_statuses.check(
            subject.der, issuer.der, checks.now, rules.max_ocsp_age, rules.ocsp_grace or _NO_GRACE
        )
    except CollateralExpiredError:
        raise
    except CollateralError as error:
        # Not a gap: the answer in place of this one may be about another certificate.
        message = (
            f"OCSP answers about {name}: none of {len(answers)} is usable: {error}; fetch the "
            "endorsements again"
        )
        raise VerificationError(message, reason="device_ocsp") from error


def join_errors(errors: Sequence[AttestKitError]) -> AttestKitError:
    """Return the error of the first rejected device, with the texts of all errors.

    An error about missing endorsements is returned only if no device was rejected.
    """
    refused = [error for error in errors if isinstance(error, GpuEvidenceError)]
    first: AttestKitError = refused[0] if refused else errors[0]
    texts = [str(first), *(str(error) for error in errors if error is not first)]
    message = "; ".join(texts)
    if isinstance(first, GpuEvidenceError):
        return GpuEvidenceError(message, reason=first.reason, device=first.device)
    if isinstance(first, CollateralError):
        return CollateralError(message, reason=first.reason)
    return first


def check_tokens(
    devices: Sequence[CheckedDevice], checks: DeviceChecks
) -> tuple[VerificationStep, tuple[dict[str, object], ...]]:
    """Verify the NRAS tokens among the endorsements, and that there is one for each device.

    Args:
        devices: Devices whose chains, reports and nonces are valid.
        checks: Settings of the verification.

    Returns:
        The step `gpu_nras` of the result, and the claims about each device in the order of
        `devices`.

    Raises:
        GpuEvidenceError: If a token is not valid, is missing for a device, or states another
            version of driver or VBIOS than the device's report.
        CollateralError: If the endorsements have no tokens, or no keys of NVIDIA's service.
    """
    endorsements = checks.endorsements
    if not endorsements.nras:
        raise CollateralError(_NO_TOKENS, reason="missing")
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
    return passed("gpu_nras", text), claims


def _claims_of(device: CheckedDevice, found: dict[str, DeviceClaims]) -> DeviceClaims:
    """Return the claims about a device from `found`, by the serial number of its leaf certificate.

    GpuEvidenceError if there are none, or their driver or VBIOS version is not the report's.
    """
    claims = found.get(device.chain.ueid)
    # Fewer claims are required of a switch.
    if claims is None or claims.kind != device.report.kind:
        problem = "no NRAS token is about this device; fetch tokens for this evidence"
        raise device.label.error(problem, "nras_result")
    report = device.report
    pairs = [(claims.vbios_version, report.vbios_version)]
    if report.driver_version is not None:
        pairs.append((claims.driver_version, report.driver_version))
    for stated, signed in pairs:
        if (stated or "").upper() != signed.upper():
            problem = f"the NRAS token is about version {stated!r}, the report is of {signed}"
            raise device.label.error(problem, "nras_result")
    return claims
