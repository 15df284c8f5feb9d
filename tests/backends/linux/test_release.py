"""Kernel release: expected features and the fix of CVE-2026-31470."""

from attestkit.backends.linux.kernel_paths import FEATURES, KernelRelease
from tests.runner.cases import every_case


@every_case(
    ("text", "number"),
    [
        ("6.12.94+deb13-amd64", (6, 12, 94)),
        ("7.1-rc3", (7, 1, 0)),
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


@every_case(
    ("text", "features"),
    [
        ("6.1.0", 0),
        ("6.2", 1),
        ("6.4.9", 2),
        ("6.7.0", 3),
        ("6.15.11", 4),
        ("6.16", 5),
        ("7.1", 6),
        ("10.0", 6),
    ],
)
def test_release_features_start_with_their_version(text: str, features: int) -> None:
    """Versions are compared numerically."""
    release = KernelRelease.parse(text)
    found = [name for name in FEATURES if release.has(name)]
    assert found == list(FEATURES)[:features]


@every_case(
    ("text", "repaired"),
    [
        ("6.6.99", True),  # without configfs-tsm
        ("6.7", False),
        ("6.12.79", False),
        ("6.12.80", True),
        ("6.18.20", False),
        ("6.18.21", True),
        ("6.19.10", False),
        ("6.19.11", True),
        ("7.0", True),
    ],
)
def test_release_with_fixed_quote_length_is_recognised(text: str, repaired: bool) -> None:
    """CVE-2026-31470 is fixed per series; 7.0 and later have the fix."""
    assert KernelRelease.parse(text).repaired is repaired
