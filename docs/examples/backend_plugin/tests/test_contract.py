"""The example keeps to what every backend keeps to, and turns its device's errors into ours."""

import pytest
from attestkit_example_tee import ExampleTee, PretendedDevice

from attestkit.backends.base import Backend
from attestkit.errors import BackendError, UsageError
from attestkit.testing import BackendContract


class TestExampleTee(BackendContract):
    """The contract."""

    def make_backend(self) -> Backend:
        """Return a backend with a device of its own."""
        return ExampleTee()


def test_a_device_that_fails_is_an_error_of_attestkit() -> None:
    """No OSError leaves the backend."""

    def broken(report_data: bytes) -> bytes:
        raise OSError(5, f"Input/output error after {len(report_data)} bytes")

    device = PretendedDevice()
    device.quote = broken
    with pytest.raises(BackendError, match=r"gave no quote: .*Input/output error"):
        ExampleTee(device=device).get_quote(bytes(64))


def test_closed_is_closed() -> None:
    """Nothing is asked of a device that was let go of."""
    backend = ExampleTee()
    backend.close()
    with pytest.raises(UsageError, match="closed"):
        backend.get_quote(bytes(64))
