"""A backend for attestkit in a separate package.

Its device is simulated: a simulated TD of attestkit, with the interface of a real device. Replace
it with yours, and set `simulated` to False only if hardware makes its quotes.
"""

from typing import Protocol

from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendError, UsageError
from attestkit.event_log.journal import RuntimeLog

__all__ = ["Device", "ExampleTee", "PretendedDevice"]


class Device(Protocol):
    """Interface of a device; tests can pass another implementation."""

    def quote(self, report_data: bytes) -> bytes:
        """Return a raw quote; raise OSError on failure."""

    def firmware_log(self) -> bytes:
        """Return the CCEL of the firmware."""

    def register(self, number: int) -> bytes:
        """Return the value of RTMR `number`, 48 bytes."""

    def extend(self, number: int, digest: bytes) -> None:
        """Extend RTMR `number` by 48 bytes."""

    def runtime_log(self) -> RuntimeLog:
        """Return the log of events since boot."""


class PretendedDevice:
    """Simulated device of this example."""

    def __init__(self) -> None:
        self._tee = Simulator()
        self.quote = self._tee.get_quote
        self.firmware_log = self._tee.read_event_log
        self.register = self._tee.read_rtmr
        self.extend = self._tee.extend_rtmr
        self.runtime_log = self._tee.open_journal


class ExampleTee:
    """A TEE with the given device, or the default device."""

    name = "example_tee"
    simulated = True
    blocking = True  # calls wait for the device

    def __init__(self, *, device: Device | None = None) -> None:
        self._device = PretendedDevice() if device is None else device
        self._closed = False

    @classmethod
    def probe(cls) -> None:
        """Return; the simulated device is always available.

        Yours raises BackendUnavailableError with the remedy if it is missing: "/dev/example_tee is
        not there: load its driver".
        """

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a raw quote over `report_data`, exactly 64 bytes."""
        if len(report_data) != 64:
            raise UsageError(
                f"report_data: must be 64 bytes: {len(report_data)}", reason="wrong_size"
            )
        self._check_open()
        try:
            return self._device.quote(report_data)
        except OSError as error:  # backends raise only errors of attestkit
            raise BackendError(f"/dev/example_tee: {error}", reason="io_error") from error

    def read_event_log(self) -> bytes:
        """Return the firmware's log: the whole area with its padding."""
        self._check_open()
        return self._device.firmware_log()

    def read_rtmr(self, register: int) -> bytes:
        """Return the current value of a register, 0 to 3."""
        self._check_open()
        return self._device.register(register)

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend a register by a digest of 48 bytes."""
        if register not in (2, 3) or len(digest) != 48:
            raise UsageError(
                "extend_rtmr: must be 48 bytes for RTMR2 or RTMR3", reason="wrong_value"
            )
        self._check_open()
        self._device.extend(register, digest)

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the runtime events of this TEE; always the same object."""
        del version  # the simulated device has extended its first event at boot
        return self._device.runtime_log()

    def close(self) -> None:
        """Release the device. A second call has no effect."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("ExampleTee: closed", reason="closed")
