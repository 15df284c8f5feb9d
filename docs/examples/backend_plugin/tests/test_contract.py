"""The example fulfils the backend contract, and converts errors of its device."""

import pytest
from attestkit_example_tee import ExampleTee, PretendedDevice

from attestkit.backends.base import Backend
from attestkit.errors import BackendError, UsageError
from attestkit.testing import BackendContract


class TestExampleTee(BackendContract):
    """Contract tests of the example."""

    def make_backend(self) -> Backend:
        """Return a backend with a new device."""
        return ExampleTee()


def test_get_quote_device_error_raises_backend_error() -> None:
    """An OSError of the device becomes a BackendError."""

    def broken(report_data: bytes) -> bytes:
        raise OSError(5, f"Input/output error after {len(report_data)} bytes")

    device = PretendedDevice()
    device.quote = broken
    with pytest.raises(BackendError, match="Input/output error"):
        ExampleTee(device=device).get_quote(bytes(64))


def test_get_quote_after_close_raises_usage_error() -> None:
    """A closed backend does not use its device."""
    backend = ExampleTee()
    backend.close()
    with pytest.raises(UsageError, match="closed"):
        backend.get_quote(bytes(64))
