"""Comparison of a report's measurements with the expected ones (nvidia-gpu.md, section 4.4)."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attestkit.errors import GpuEvidenceError
from attestkit.gpu.architectures import NVDEC_INDEX
from attestkit.gpu.rim.identity import RimSource
from attestkit.gpu.rim.manifest import Rim


@dataclass(frozen=True, slots=True)
class MeasurementMismatch:
    """A measurement that differs from all its expected values."""

    index: int
    source: RimSource  # the manifest with the expected values
    reported: bytes | None  # None if the report has no such measurement
    expected: tuple[bytes, ...]

    def __str__(self) -> str:
        """Return index, source and the first bytes of the values."""
        found = "missing" if self.reported is None else f"{self.reported[:8].hex()}..."
        expected = " or ".join(f"{one[:8].hex()}..." for one in self.expected)
        return f"index {self.index} ({self.source}): {found}, expected {expected}"


@dataclass(frozen=True, slots=True)
class MeasurementComparison:
    """Result of a comparison; each tuple is sorted by index."""

    golden: int  # number of active measurements of all manifests
    matched: tuple[int, ...]
    skipped: tuple[int, ...]  # not compared: of the video decoder, which is off
    mismatches: tuple[MeasurementMismatch, ...]

    @property
    def mismatched(self) -> tuple[int, ...]:
        """The indexes of the mismatches."""
        return tuple(one.index for one in self.mismatches)

    def check(self, accepted: frozenset[int] = frozenset()) -> None:
        """Check that measurements differ at `accepted` indexes only.

        Raises:
            GpuEvidenceError: If there is; the text lists all of them (`measurements`).
        """
        found = [one for one in self.mismatches if one.index not in accepted]
        if found:
            count = f"{len(found)} of {self.golden} measurements differ"
            text = f"{count}: {'; '.join(map(str, found))}"
            raise GpuEvidenceError(text, reason="measurements")


def compare_measurements(
    measurements: Sequence[bytes], rims: Mapping[RimSource, Rim], *, nvdec0: bool | None
) -> MeasurementComparison:
    """Compare measurements with the active ones of a device's verified manifests.

    Args:
        measurements: Values of the report, 48 bytes each; a manifest's index is the position.
        rims: Manifests by what they are of; a switch has one.
        nvdec0: Whether the video decoder 0 is on; None if the report does not say. While it is
            off, index 35 is not compared.

    Raises:
        GpuEvidenceError: If an index is active in two manifests, or none is active
            (`measurements`).
    """
    golden = _golden(rims)
    matched, skipped, mismatches = [], [], []
    for index, (source, expected) in sorted(golden.items()):
        reported = measurements[index] if index < len(measurements) else None
        if index == NVDEC_INDEX and nvdec0 is False:
            skipped.append(index)
        elif reported is not None and _is_one_of(reported, expected):
            matched.append(index)
        else:
            mismatches.append(MeasurementMismatch(index, source, reported, expected))
    return MeasurementComparison(len(golden), tuple(matched), tuple(skipped), tuple(mismatches))


def _is_one_of(reported: bytes, expected: tuple[bytes, ...]) -> bool:
    for one in expected:  # noqa: SIM110 - a generator takes three times as long
        if hmac.compare_digest(reported, one):
            return True
    return False


def _golden(rims: Mapping[RimSource, Rim]) -> dict[int, tuple[RimSource, tuple[bytes, ...]]]:
    """Return manifest and accepted values of each active index."""
    found: dict[int, tuple[RimSource, tuple[bytes, ...]]] = {}
    conflicts = []
    for source, rim in rims.items():
        for index, (active, alternatives, _) in rim.measurements.items():
            if active:
                if index in found:
                    conflicts.append(index)
                found[index] = source, alternatives
    if conflicts:
        indexes = ", ".join(map(str, sorted(conflicts)))
        text = f"measurements active in both RIMs: {indexes}"
        raise GpuEvidenceError(text, reason="measurements")
    if not found:
        raise GpuEvidenceError("RIMs: no measurement is active", reason="measurements")
    return found
