"""Comparison of measurements with RIMs, and the identity of RIMs."""

from collections.abc import Mapping
from typing import Any

import pytest

from attestkit.errors import GpuEvidenceError
from attestkit.gpu.checks.rim_checks import MeasurementMismatch, compare_measurements
from attestkit.gpu.device.report import Report
from attestkit.gpu.rim.manifest import Rim, RimMeasurement, RimSource, check_rim_identity
from attestkit.gpu.rim.verification import verify_rim
from tests.gpu.rim import samples
from tests.raising import raises
from tests.runner.cases import every_case

VALUES = tuple(bytes([number]) * 48 for number in range(64))
OTHER = b"\xff" * 48
EMPTY: Mapping[int, bytes] = {}


def rim(active: Mapping[int, tuple[bytes, ...]], inactive: Mapping[int, bytes] = EMPTY) -> Rim:
    """Return a manifest with these measurements."""
    measurements = {index: RimMeasurement(True, values, "m") for index, values in active.items()}
    for index, value in inactive.items():
        measurements[index] = RimMeasurement(False, (value,), "m")
    return Rim("GH100", "", "550.90.07", "GH100", "GPU", "5703", measurements, ())


def matching(*indexes: int) -> Rim:
    """Return a manifest whose active measurements match."""
    return rim({index: (VALUES[index],) for index in indexes})


# -- samples ---------------------------------------------------------------------------------------


def compare_sample(name: str, *, rule: bool) -> dict[str, Any]:
    """Return the comparison of a report with its manifests, as the expected values have it."""
    report_name, _, _ = name.partition(" against ")
    names = samples.EXPECTED["comparisons"][name]
    if report_name == "gb100-575.32":
        names = {"driver": "rims/negative/gb100-debug-root.xml", "vbios": None}
    elif "driver" not in names:
        names = {
            "driver": "rims/negative/driver-535.86.09-digest.xml",
            "vbios": "rims/negative/vbios-96005E0001-other-values.xml",
        }
    report = Report.parse(samples.read(f"reports/{report_name}/report.bin"))
    sources: tuple[RimSource, RimSource] = ("driver", "vbios")
    rims = {source: Rim.parse(samples.read(names[source])) for source in sources if names[source]}
    found = compare_measurements(report.measurements, rims, nvdec0=report.nvdec0 if rule else None)
    return {
        "golden": found.golden,
        "matched": len(found.matched),
        "skipped": list(found.skipped),
        "mismatched": [[one.index, one.source] for one in found.mismatches],
        "conflict": [],
    }


@samples.needs_shared
@pytest.mark.parametrize("name", samples.EXPECTED["comparisons"])
@pytest.mark.parametrize("rule", ["with_nvdec_rule", "without_nvdec_rule"])
def test_comparison_of_sample(name: str, rule: str) -> None:
    """Matches, mismatches and skipped measurements of real reports are the expected ones."""
    expected = samples.EXPECTED["comparisons"][name].get(rule)
    if expected is not None:
        assert compare_sample(name, rule=rule == "with_nvdec_rule") == expected


@samples.needs_shared
def test_complete_case() -> None:
    """The real report with both its RIMs is accepted at the time of the case."""
    case = samples.EXPECTED["complete_case"]
    report = Report.parse(samples.read(f"reports/{case['report']}/report.bin"))
    names = samples.EXPECTED["comparisons"][case["report"]]
    root, now = samples.rim_root(), samples.at(case["at"])
    driver = verify_rim(samples.read(names["driver"]), root, now).rim
    vbios = verify_rim(samples.read(names["vbios"]), root, now).rim
    check_rim_identity(driver, "driver", version=report.driver_version or "", product="GH100")
    check_rim_identity(vbios, "vbios", version=report.vbios_version.lower(), product="GH100")
    found = compare_measurements(
        report.measurements, {"driver": driver, "vbios": vbios}, nvdec0=report.nvdec0
    )
    found.check()
    assert (found.golden, found.skipped) == (33, (35,))


CHECKED = {"measurements", "driver_rim_identity", None}


@samples.needs_shared
@pytest.mark.parametrize(
    "case",
    [case for case in samples.CASES if case["failed_check"] in CHECKED],
    ids=lambda case: case["name"],
)
def test_comparison_of_fabricated_case(case: Mapping[str, str | None]) -> None:
    """Cases about identity and measurements fail there, and the accepted ones do not."""
    folder = f"fabricated/{case['name']}"
    report = Report.parse(samples.read(f"{folder}/report.bin"))
    product = "GB100" if case["arch"] == "BLACKWELL" else "GH100"
    driver = Rim.parse(samples.read(f"{folder}/driver-rim.xml"))
    vbios = Rim.parse(samples.read(f"{folder}/vbios-rim.xml"))

    def check() -> None:
        check_rim_identity(driver, "driver", version=report.driver_version or "", product=product)
        check_rim_identity(vbios, "vbios", version=report.vbios_version, product=product)
        rims: Mapping[RimSource, Rim] = {"driver": driver, "vbios": vbios}
        compare_measurements(report.measurements, rims, nvdec0=report.nvdec0).check()

    if case["failed_check"] is None:
        check()
    else:
        with raises(GpuEvidenceError, case["failed_check"]):
            check()


# -- rules -----------------------------------------------------------------------------------------


def test_all_match() -> None:
    """Active measurements of both manifests are compared."""
    found = compare_measurements(
        VALUES, {"driver": matching(7, 1), "vbios": matching(0)}, nvdec0=True
    )
    assert (found.golden, found.matched, found.skipped) == (3, (0, 1, 7), ())
    assert found.mismatches == ()
    found.check()


def test_alternatives_are_accepted() -> None:
    """A measurement may have any of the values of its index, and none of another index."""
    for values in ((OTHER, VALUES[3]), (VALUES[3], OTHER)):
        compare_measurements(VALUES, {"driver": rim({3: values})}, nvdec0=None).check()
    found = compare_measurements(VALUES, {"driver": rim({3: (OTHER, VALUES[4])})}, nvdec0=None)
    assert found.mismatched == (3,)


def test_all_mismatches_are_listed_with_their_source() -> None:
    """The error names every index, the manifest, and the values."""
    rims: Mapping[RimSource, Rim] = {
        "driver": rim({9: (OTHER,), 1: (VALUES[1],), 64: (VALUES[0],)}),
        "vbios": rim({2: (OTHER, VALUES[3])}),
    }
    found = compare_measurements(VALUES, rims, nvdec0=None)
    assert found.matched == (1,)
    assert found.mismatches == (
        MeasurementMismatch(2, "vbios", VALUES[2], (OTHER, VALUES[3])),
        MeasurementMismatch(9, "driver", VALUES[9], (OTHER,)),
        MeasurementMismatch(64, "driver", None, (VALUES[0],)),
    )
    with raises(
        GpuEvidenceError,
        "measurements",
        text="3 of 4 measurements differ: "
        "index 2 (vbios): 0202020202020202..., expected ffffffffffffffff... or "
        "0303030303030303...; index 9 (driver): 0909090909090909..., expected "
        "ffffffffffffffff...; index 64 (driver): missing, expected 0000000000000000...",
    ):
        found.check()


def test_mismatches_at_accepted_indexes_are_let_through() -> None:
    """A policy may accept mismatches of some indexes; the others still fail."""
    found = compare_measurements(VALUES, {"driver": rim({1: (OTHER,), 2: (OTHER,)})}, nvdec0=None)
    found.check(frozenset({1, 2, 3}))
    with raises(GpuEvidenceError, "measurements", start="1 of 2 measurements differ: index 2"):
        found.check(frozenset({1}))


def test_inactive_measurements_are_not_compared() -> None:
    """An inactive measurement may have any value, also of an index that the report lacks."""
    driver = rim({1: (VALUES[1],)}, {2: OTHER, 200: OTHER})
    vbios = rim({2: (VALUES[2],)}, {1: OTHER})
    found = compare_measurements(VALUES, {"driver": driver, "vbios": vbios}, nvdec0=None)
    assert (found.golden, found.matched) == (2, (1, 2))


def test_index_active_in_both_is_refused() -> None:
    """A conflict is an error although both manifests have the same value."""
    rims: Mapping[RimSource, Rim] = {"driver": matching(1, 5, 3), "vbios": matching(5, 1)}
    text = "RIMs: measurements active in both: 1, 5; fetch the endorsements again"
    with raises(GpuEvidenceError, "measurements", text=text):
        compare_measurements(VALUES, rims, nvdec0=None)


@pytest.mark.parametrize("rims", [{}, {"driver": rim({}, {1: OTHER}), "vbios": rim({})}])
def test_nothing_active_is_refused(rims: Mapping[RimSource, Rim]) -> None:
    """Nothing to compare is not a match."""
    with raises(GpuEvidenceError, "measurements"):
        compare_measurements(VALUES, rims, nvdec0=None)


@pytest.mark.parametrize(("nvdec0", "skipped"), [(False, (35,)), (True, ()), (None, ())])
def test_video_decoder_rule(*, nvdec0: bool | None, skipped: tuple[int, ...]) -> None:
    """Index 35 is skipped only if the report says that the decoder is off."""
    rims: Mapping[RimSource, Rim] = {"driver": rim({35: (OTHER,), 36: (VALUES[36],)})}
    found = compare_measurements(VALUES, rims, nvdec0=nvdec0)
    assert found.skipped == skipped
    assert found.mismatched == (() if skipped else (35,))


def test_short_measurement_does_not_match() -> None:
    """A value of another size is a mismatch."""
    found = compare_measurements([VALUES[0][:47]], {"driver": matching(0)}, nvdec0=None)
    assert found.mismatched == (0,)


# -- identity --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "product"), [("550.90.07", "GH100"), ("550.90.07", "gh100")])
def test_identity_is_compared_without_case(version: str, product: str) -> None:
    """Versions of a VBIOS are upper case in RIMs and lower case in drivers."""
    check_rim_identity(matching(0), "driver", version=version, product=product)


@every_case(
    ("version", "product"),
    [("550.90.08", "GH100"), ("550.90.07", "GB100"), ("", "GH100"), ("550.90.07", "")],
)
def test_other_identity_is_refused(version: str, product: str) -> None:
    """A RIM of another version or product is refused, with the reason of its source."""
    for source, reason in (("driver", "driver_rim_identity"), ("vbios", "vbios_rim_identity")):
        known: RimSource = "driver" if source == "driver" else "vbios"
        with raises(GpuEvidenceError, reason, start=f"{source} RIM: "):
            check_rim_identity(matching(0), known, version=version, product=product)
