"""Comparison of a device's measurements with its manifests, RIMs."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from attestkit.errors import CollateralError, FormatError, GpuEvidenceError, SignatureError
from attestkit.gpu.architectures import NVDEC_INDEX
from attestkit.gpu.checks.device_checks import CheckedDevice, DeviceChecks, check_revocation
from attestkit.gpu.result import OcspFacts, RimFacts
from attestkit.gpu.rim.manifest import Rim, RimSource, check_rim_identity, rim_reason
from attestkit.gpu.rim.verification import VerifiedRim, verify_rim

_Expected: TypeAlias = tuple[int, RimSource, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class MeasurementMismatch:
    """A measurement that differs from all its expected values."""

    index: int
    source: RimSource  # the manifest with the expected values
    reported: bytes | None  # None if the report has no such measurement
    expected: tuple[bytes, ...]

    def __str__(self) -> str:
        """Return index, manifest, and the first 8 bytes of each value, on one line."""
        found = "missing" if self.reported is None else f"{self.reported[:8].hex()}..."
        expected = " or ".join(f"{one[:8].hex()}..." for one in self.expected)
        return f"index {self.index} ({self.source}): {found}, expected {expected}"


@dataclass(frozen=True, slots=True)
class MeasurementComparison:
    """Comparison of a device's measurements with its RIMs: matching, skipped, and differing ones.

    Tuples are sorted by index.
    """

    golden: int  # number of active measurements of all manifests
    matched: tuple[int, ...]
    skipped: tuple[int, ...]  # not compared: of the video decoder, which is off
    mismatches: tuple[MeasurementMismatch, ...]

    @property
    def mismatched(self) -> tuple[int, ...]:
        """The indexes of the measurements in `mismatches`."""
        return tuple(one.index for one in self.mismatches)

    def check(self, accepted: frozenset[int] = frozenset()) -> None:
        """Check that measurements differ at `accepted` indexes only.

        Raises:
            GpuEvidenceError: If measurements differ elsewhere; the text lists them all
                (`measurements`).
        """
        found = [one for one in self.mismatches if one.index not in accepted]
        if found:
            count = f"{len(found)} of {self.golden} measurements differ"
            text = f"{count}: {'; '.join(map(str, found))}"
            raise GpuEvidenceError(text, reason="measurements")


def compare_measurements(
    measurements: Sequence[bytes], rims: Mapping[RimSource, Rim], *, nvdec0: bool | None
) -> MeasurementComparison:
    """Compare measurements of a device with the active ones of its verified manifests.

    Args:
        measurements: Values of the report, 48 bytes each, at the indexes of the manifests.
        rims: The manifests `driver` and `vbios`; a switch has only `vbios`.
        nvdec0: Whether the video decoder 0 is on; None if the report does not state it. While it is
            off, index 35 is not compared.

    Raises:
        GpuEvidenceError: If an index is active in two manifests, or none is active
            (`measurements`).
    """
    golden = _golden(tuple(rims.items()))
    matched, skipped, mismatches = [], [], []
    for index, source, expected in golden:
        reported = measurements[index] if index < len(measurements) else None
        if index == NVDEC_INDEX and nvdec0 is False:
            skipped.append(index)
        elif reported is not None and (
            hmac.compare_digest(reported, expected[0]) or _is_one_of(reported, expected[1:])
        ):
            matched.append(index)
        else:
            mismatches.append(MeasurementMismatch(index, source, reported, expected))
    return MeasurementComparison(len(golden), tuple(matched), tuple(skipped), tuple(mismatches))


def _is_one_of(reported: bytes, expected: tuple[bytes, ...]) -> bool:
    for one in expected:  # noqa: SIM110 - a generator takes three times as long
        if hmac.compare_digest(reported, one):
            return True
    return False


# Verified manifests are kept, so the same objects are compared with many devices.
@lru_cache(maxsize=64)
def _golden(rims: tuple[tuple[RimSource, Rim], ...]) -> tuple[_Expected, ...]:
    """Return index, manifest and accepted values of each measurement active in `rims`, by index."""
    found: dict[int, tuple[RimSource, tuple[bytes, ...]]] = {}
    conflicts: list[int] = []
    for source, rim in rims:
        for index, (active, alternatives, _) in rim.measurements.items():
            if active:
                if index in found:
                    conflicts.append(index)
                found[index] = source, alternatives
    if conflicts:
        indexes = ", ".join(map(str, sorted(conflicts)))
        text = f"RIMs: measurements active in both: {indexes}; fetch the endorsements again"
        raise GpuEvidenceError(text, reason="measurements")
    if not found:
        text = "RIMs: must have an active measurement; fetch the endorsements again"
        raise GpuEvidenceError(text, reason="measurements")
    return tuple([(index, *found[index]) for index in sorted(found)])


class ComparedDevice(NamedTuple):
    """A device's compared measurements, and the manifests and OCSP answers used for that."""

    comparison: MeasurementComparison
    rims: tuple[RimFacts, ...]
    ocsp: tuple[OcspFacts, ...]


def compare_device(device: CheckedDevice, checks: DeviceChecks) -> ComparedDevice:
    """Verify the manifests of a device, and compare its measurements with them.

    Raises:
        GpuEvidenceError: If a manifest is not valid or not the device's, its signer is revoked, or
            a measurement differs at an index that the rules do not accept.
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
            text = str(error).removeprefix("RIM: ")
            form = rim_reason(source, "format")
            raise GpuEvidenceError(f"{source} RIM: {text}", reason=form) from error
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
    """Return names for errors of the `count` certificates of a RIM, without the root."""
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
