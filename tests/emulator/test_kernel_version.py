"""Features of the emulated kernel by release, as in the specification's tables."""

import pytest

from attestkit.emulator.kernel_version import EmulatedKernel
from attestkit.errors import UsageError
from tests.raising import raises


def list_features(text: str) -> tuple[bool, ...]:
    """Return the features of a release, in the order of their introduction."""
    kernel = EmulatedKernel.parse(text)
    return (
        kernel.has_device,
        kernel.has_ccel_data,
        kernel.has_reports,
        kernel.has_services,
        kernel.has_measurements,
        kernel.reports_failure,
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
def test_kernel_feature_starts_with_its_release(last_without: str, first_with: str) -> None:
    """Later releases keep the feature."""
    assert list_features(first_with).count(True) == list_features(last_without).count(True) + 1
    assert list_features(first_with) == tuple(sorted(list_features(first_with), reverse=True))


@pytest.mark.parametrize(
    ("text", "checks"),
    [
        *(("6.7", False), ("6.12.79", False), ("6.12.80", True), ("6.12", True), ("6.15", False)),
        *(("6.18.20", False), ("6.18.21", True), ("6.19.10", False), ("6.19.11", True)),
        *(("7.0.0", True), ("7.3", True)),
    ],
)
def test_kernel_length_check_starts_with_its_patch_level(text: str, checks: bool) -> None:
    """A series without a patch level is its last release."""
    assert EmulatedKernel.parse(text).checks_length is checks


@pytest.mark.parametrize(
    ("text", "limit", "buffer"),
    [("6.7", 32 << 10, 8 << 10), ("6.19", 32 << 10, 8 << 10), ("7.0", 16 << 20, 128 << 10)],
)
def test_kernel_outblob_limit_and_quote_buffer(text: str, limit: int, buffer: int) -> None:
    """The size limit of outblob, and of the buffer shared with the host."""
    kernel = EmulatedKernel.parse(text)
    assert (kernel.outblob_limit, kernel.quote_buffer) == (limit, buffer)


@pytest.mark.parametrize("text", ["", "6", "6.", "6.12.", "6.12-rc1", "v6.12", "6.12.1.1", "٦.١٢"])
def test_kernel_invalid_release_is_rejected(text: str) -> None:
    """A release is two or three decimal numbers."""
    with raises(UsageError, "wrong_value"):
        EmulatedKernel.parse(text)
