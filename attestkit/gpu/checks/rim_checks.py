"""Comparison of a device with its reference integrity manifests (nvidia-gpu.md, 4.3 and 4.4)."""

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from attestkit.errors import CollateralError, FormatError, GpuEvidenceError, SignatureError
from attestkit.gpu.checks.device_checks import (
    CheckedDevice,
    DeviceChecks,
    check_revocation,
)
from attestkit.gpu.result import OcspFacts, RimFacts
from attestkit.gpu.rim.identity import RimSource, check_rim_identity, rim_reason
from attestkit.gpu.rim.measurements import MeasurementComparison, compare_measurements
from attestkit.gpu.rim.verification import VerifiedRim, verify_rim

if TYPE_CHECKING:
    from attestkit.gpu.rim.manifest import Rim


class ComparedDevice(NamedTuple):
    """Measurements of a device beside their reference values, and what those were."""

    comparison: MeasurementComparison
    rims: tuple[RimFacts, ...]
    ocsp: tuple[OcspFacts, ...]


def compare_device(device: CheckedDevice, checks: DeviceChecks) -> ComparedDevice:
    """Verify the manifests of a device, and compare its measurements with them.

    Raises:
        GpuEvidenceError: If a manifest is not valid or not the device's, or a measurement differs.
        CollateralError: If a manifest or all OCSP answers are missing.
    """
    chip, report = device.chain.chip, device.report
    wanted: dict[RimSource, tuple[str, str]] = {}
    if report.kind == "gpu":
        wanted["driver"] = report.driver_rim_id(chip), report.driver_version or ""
    wanted["vbios"] = report.vbios_rim_id(chip), report.vbios_version
    rims: dict[RimSource, Rim] = {}
    facts: list[RimFacts] = []
    answers: list[OcspFacts] = []
    for source, (identifier, version) in wanted.items():
        data = _find_rim(identifier, device, checks)
        found = _verify(source, data, device, checks)
        with device.label.refused_as(rim_reason(source, "identity")):
            check_rim_identity(found.rim, source, version=version, product=chip.name)
        answers += _check_signer(source, found, device, checks)
        rims[source] = found.rim
        facts.append(_facts(identifier, source, found))
    with device.label.refused_as("measurements"):
        comparison = compare_measurements(report.measurements, rims, nvdec0=report.nvdec0)
        comparison.check(frozenset(checks.rules.accepted_mismatches))
    return ComparedDevice(comparison, tuple(facts), tuple(answers))


def _find_rim(identifier: str, device: CheckedDevice, checks: DeviceChecks) -> bytes:
    data = checks.endorsements.rims.get(identifier)
    if data is None:
        message = f"{device.label}: RIM {identifier}: missing; fetch the endorsements"
        raise CollateralError(message, reason="missing")
    return data


def _verify(
    source: RimSource, data: bytes, device: CheckedDevice, checks: DeviceChecks
) -> VerifiedRim:
    chain = rim_reason(source, "chain")
    with device.label.refused_as(chain):
        try:
            return verify_rim(data, checks.roots.rim, checks.now)
        except FormatError as error:
            form = rim_reason(source, "format")
            raise GpuEvidenceError(f"{source} RIM: {error}", reason=form) from error
        except SignatureError as error:
            is_signature = error.reason == "bad_signature"
            reason = rim_reason(source, "signature") if is_signature else chain
            raise GpuEvidenceError(f"{source} RIM: {error}", reason=reason) from error


def _check_signer(
    source: RimSource, found: VerifiedRim, device: CheckedDevice, checks: DeviceChecks
) -> tuple[OcspFacts, ...]:
    path = found.path.certificates
    names = _certificate_names(source, len(path))
    return check_revocation(device.label, path, names, rim_reason(source, "ocsp"), checks)


@lru_cache(maxsize=16)
def _certificate_names(source: RimSource, count: int) -> tuple[str, ...]:
    """Return the names of a RIM's certificates without the root."""
    between = [f"CA {number} of the {source} RIM" for number in range(1, count - 1)]
    return f"the signer of the {source} RIM", *between


def _facts(identifier: str, source: RimSource, found: VerifiedRim) -> RimFacts:
    return RimFacts(
        identifier=identifier,
        part=source,
        version=found.rim.version,
        product=found.rim.product,
        signer=found.signer,
        sha256=found.sha256,
        valid_until=found.valid_until,
    )
