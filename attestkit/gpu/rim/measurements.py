"""Comparison of a report's measurements with the expected ones (nvidia-gpu.md, section 4.4)."""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from attestkit.errors import GpuEvidenceError
from attestkit.gpu.architectures import NVDEC_INDEX
from attestkit.gpu.rim.identity import RimSource
from attestkit.gpu.rim.manifest import Rim

_Expected: TypeAlias = tuple[int, RimSource, tuple[bytes, ...]]


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
    """Return index, manifest and accepted values of each active measurement, by index."""
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
        text = f"measurements active in both RIMs: {indexes}"
        raise GpuEvidenceError(text, reason="measurements")
    if not found:
        raise GpuEvidenceError("RIMs: no measurement is active", reason="measurements")
    return tuple([(index, *found[index]) for index in sorted(found)])
