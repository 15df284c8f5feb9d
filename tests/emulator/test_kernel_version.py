"""What the emulated kernel offers follows from its release, as the spec's tables have it."""

import pytest

from attestkit.emulator.kernel_version import EmulatedKernel
from attestkit.errors import UsageError


def has(text: str) -> tuple[bool, ...]:
    """Return what a release has, in the order in which it came."""
    kernel = EmulatedKernel.parse(text)
    return (
        kernel.has_device,
        kernel.has_ccel_data,
        kernel.has_reports,
        kernel.has_services,
        kernel.has_measurements,
        kernel.tells_failure,
    )


@pytest.mark.parametrize(
    ("last_without", "first_with"),
    [
        ("6.1", "6.2"),
        ("6.3", "6.4"),
        ("6.6", "6.7"),
        ("6.10", "6.11"),
        ("6.15", "6.16"),
        ("7.0", "7.1"),
    ],
)
def test_features(last_without: str, first_with: str) -> None:
    """Each feature comes with its release, and stays."""
    assert has(first_with).count(True) == has(last_without).count(True) + 1
    assert has(first_with) == tuple(sorted(has(first_with), reverse=True))


@pytest.mark.parametrize(
    ("text", "checks"),
    [
        *(("6.7", False), ("6.12.79", False), ("6.12.80", True), ("6.12", True), ("6.15", False)),
        *(("6.18.20", False), ("6.18.21", True), ("6.19.10", False), ("6.19.11", True)),
        *(("7.0.0", True), ("7.3", True)),
    ],
)
def test_length_check(text: str, checks: bool) -> None:
    """The host's length is checked from the patch level of each series on; a series is its last."""
    assert EmulatedKernel.parse(text).checks_length is checks


@pytest.mark.parametrize(
    ("text", "limit", "buffer"),
    [("6.7", 32 << 10, 8 << 10), ("6.19", 32 << 10, 8 << 10), ("7.0", 16 << 20, 128 << 10)],
)
def test_sizes(text: str, limit: int, buffer: int) -> None:
    """Limit of outblob, and size of the buffer shared with the host."""
    kernel = EmulatedKernel.parse(text)
    assert (kernel.outblob_limit, kernel.quote_buffer) == (limit, buffer)


@pytest.mark.parametrize("text", ["", "6", "6.", "6.12.", "6.12-rc1", "v6.12", "6.12.1.1", "٦.١٢"])
def test_no_release(text: str) -> None:
    """Anything but two or three numbers is a caller's mistake."""
    with pytest.raises(UsageError, match=r"6\.12\.80"):
        EmulatedKernel.parse(text)
