"""Kernel release: expected features and the fix of CVE-2026-31470."""

import pytest

from attestkit.backends.linux.release import FEATURES, KernelRelease
from attestkit.emulator.kernel_version import EmulatedKernel


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("6.12.94+deb13-amd64", (6, 12, 94)),
        ("7.1-rc3", (7, 1, 0)),
        ("6.18.44-fc-v595", (6, 18, 44)),
        ("6.6.0", (6, 6, 0)),
        ("", (0, 0, 0)),
        ("linux", (0, 0, 0)),
        ("6", (0, 0, 0)),
        ("123456.1.1", (0, 0, 0)),
    ],
)
def test_parse_release_reads_the_number(text: str, number: tuple[int, int, int]) -> None:
    """A vendor's suffix is ignored; a release without a number is unknown."""
    release = KernelRelease.parse(text)
    assert release == (text, number)
    assert release.known is (number != (0, 0, 0))


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("6.1.0", set()),
        ("6.2", {"tdx_guest"}),
        ("6.4.9", {"tdx_guest", "ccel"}),
        ("6.7.0", {"tdx_guest", "ccel", "configfs_tsm"}),
        ("6.15.11", {"tdx_guest", "ccel", "configfs_tsm"}),
        ("6.16", {"tdx_guest", "ccel", "configfs_tsm", "rtmr_files"}),
        ("7.0.3", {"tdx_guest", "ccel", "configfs_tsm", "rtmr_files"}),
        ("7.1", set(FEATURES)),
        ("10.0", set(FEATURES)),
        ("unknown", set()),
    ],
)
def test_release_features_start_with_their_version(text: str, features: set[str]) -> None:
    """Versions are compared numerically."""
    release = KernelRelease.parse(text)
    assert {name for name in FEATURES if release.has(name)} == features


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("6.6.99", True),  # without configfs-tsm
        ("6.7", False),
        ("6.11.5", False),
        ("6.12.79", False),
        ("6.12.80", True),
        ("6.17.13", False),
        ("6.18.20", False),
        ("6.18.21", True),
        ("6.19.10", False),
        ("6.19.11", True),
        ("7.0", True),
        ("7.3.4", True),
    ],
)
def test_release_with_fixed_quote_length_is_recognised(text: str, repaired: bool) -> None:
    """CVE-2026-31470 is fixed per series; 7.0 and later have the fix."""
    assert KernelRelease.parse(text).repaired is repaired


@pytest.mark.parametrize(
    "text",
    [
        "6.1",
        "6.2",
        "6.3",
        "6.4",
        "6.6",
        "6.7",
        "6.12.79",
        "6.12.80",
        "6.15",
        "6.16",
        "6.18.20",
        "6.18.21",
        "6.19.11",
        "7.0",
        "7.1",
        "7.3.4",
    ],
)
def test_release_agrees_with_emulated_kernel(text: str) -> None:
    """The doctor's expectations and the emulator's behaviour are the same."""
    release, emulated = KernelRelease.parse(text), EmulatedKernel.parse(text)
    assert release.has("tdx_guest") == emulated.has_device
    assert release.has("ccel") == emulated.has_ccel_data
    assert release.has("configfs_tsm") == emulated.has_reports
    assert release.has("rtmr_files") == emulated.has_measurements
    assert release.has("quote_errors") == emulated.reports_failure
    if emulated.has_reports:
        assert release.repaired == emulated.checks_length
