"""Emulated kernel: its release and size limits."""

import pytest

from attestkit.emulator.linux_calls import EmulatedKernel
from attestkit.errors import UsageError
from tests.raising import raises
from tests.runner.cases import every_case


def test_kernel_series_is_its_last_release() -> None:
    """A series without a patch level has all fixes of its releases."""
    assert EmulatedKernel.parse("6.12").repaired
    assert not EmulatedKernel.parse("6.12.79").repaired
    assert not EmulatedKernel.parse("6.13").repaired


@pytest.mark.parametrize(
    ("text", "limit", "buffer"),
    [("6.7", 32 << 10, 8 << 10), ("6.19", 32 << 10, 8 << 10), ("7.0", 16 << 20, 128 << 10)],
)
def test_kernel_outblob_limit_and_quote_buffer(text: str, limit: int, buffer: int) -> None:
    """The size limit of outblob, and of the buffer shared with the host."""
    kernel = EmulatedKernel.parse(text)
    assert (kernel.outblob_limit, kernel.quote_buffer) == (limit, buffer)


@every_case("text", ["", "6", "6.", "6.12.", "6.12-rc1", "v6.12", "6.12.1.1", "٦.١٢"])
def test_kernel_invalid_release_is_rejected(text: str) -> None:
    """A release is two or three decimal numbers."""
    with raises(UsageError, "wrong_value"):
        EmulatedKernel.parse(text)
