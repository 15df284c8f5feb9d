"""A backend for attestkit that lives in a package of its own.

The device here is pretended: a simulated TD of attestkit, behind the calls that a real one would
have. Put yours in its place, and set `simulated` to False only if hardware makes its quotes.
"""

from typing import Protocol

from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendError, UsageError
from attestkit.event_log.journal import RuntimeLog

__all__ = ["Device", "ExampleTee", "PretendedDevice"]


class Device(Protocol):
    """What the backend needs of a device; a test can hand in another one."""

    def quote(self, report_data: bytes) -> bytes:
        """Return a raw quote; OSError if the device gives none."""

    def firmware_log(self) -> bytes:
        """Return the CCEL, as firmware left it."""

    def register(self, number: int) -> bytes:
        """Return what RTMR `number` holds, 48 bytes."""

    def extend(self, number: int, digest: bytes) -> None:
        """Extend RTMR `number` by 48 bytes."""

    def runtime_log(self) -> RuntimeLog:
        """Return the log of what was extended since boot."""


class PretendedDevice:
    """The device of this example."""

    def __init__(self) -> None:
        self._tee = Simulator()
        self.quote = self._tee.get_quote
        self.firmware_log = self._tee.read_event_log
        self.register = self._tee.read_rtmr
        self.extend = self._tee.extend_rtmr
        self.runtime_log = self._tee.open_journal


class ExampleTee:
    """A TEE behind a device that is handed in, or found where it usually is."""

    name = "example_tee"
    simulated = True
    blocking = True  # calls wait for the device

    def __init__(self, *, device: Device | None = None) -> None:
        self._device = PretendedDevice() if device is None else device
        self._closed = False

    @classmethod
    def probe(cls) -> None:
        """Return: the pretended device is everywhere.

        Yours raises BackendUnavailableError where it is not, with what to do: "/dev/example_tee is
        not there: load its driver".
        """

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a raw quote over `report_data`, exactly 64 bytes."""
        if len(report_data) != 64:
            raise UsageError(f"report_data is 64 bytes, not {len(report_data)}")
        self._check_open()
        try:
            return self._device.quote(report_data)
        except OSError as error:  # only errors of attestkit leave a backend
            raise BackendError(f"/dev/example_tee gave no quote: {error}") from error

    def read_event_log(self) -> bytes:
        """Return the firmware's log, the whole area with its fill."""
        self._check_open()
        return self._device.firmware_log()

    def read_rtmr(self, register: int) -> bytes:
        """Return what a register, 0 to 3, holds now."""
        self._check_open()
        return self._device.register(register)

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend a register by a digest of 48 bytes."""
        if register not in (2, 3) or len(digest) != 48:
            raise UsageError("programs extend RTMR2 and RTMR3, by 48 bytes")
        self._check_open()
        self._device.extend(register, digest)

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the runtime events of this TEE; every call the same object."""
        del version  # the pretended device has had its first event already, at its boot
        return self._device.runtime_log()

    def close(self) -> None:
        """Let go of the device. A second call does nothing."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this ExampleTee is closed")
