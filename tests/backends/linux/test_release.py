"""A release's number tells what a kernel should have, and whether a host could abuse it."""

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
def test_the_number_is_read(text: str, number: tuple[int, int, int]) -> None:
    """What follows the number is a maker's own; a release without one is unknown."""
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
        ("nobody knows", set()),
    ],
)
def test_features_come_with_their_release(text: str, features: set[str]) -> None:
    """Each is there from its release on, compared as numbers."""
    release = KernelRelease.parse(text)
    assert {name for name in FEATURES if release.has(name)} == features


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("6.6.99", True),  # has no configfs-tsm
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
def test_the_repair_of_the_quote_s_length_is_known(text: str, repaired: bool) -> None:
    """CVE-2026-31470: by series and patch level; from 7.0 on all have it."""
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
def test_the_emulator_behaves_as_the_doctor_expects(text: str) -> None:
    """What a release should have is said twice, for two purposes: both say the same."""
    release, emulated = KernelRelease.parse(text), EmulatedKernel.parse(text)
    assert release.has("tdx_guest") == emulated.has_device
    assert release.has("ccel") == emulated.has_ccel_data
    assert release.has("configfs_tsm") == emulated.has_reports
    assert release.has("rtmr_files") == emulated.has_measurements
    assert release.has("quote_errors") == emulated.tells_failure
    if emulated.has_reports:
        assert release.repaired == emulated.checks_length
