"""What a backend is: one door to a TEE. Bytes in, bytes out; it never parses.

An ability that some backends lack is a protocol of its own: `RegisterExtender` for a TEE whose
registers a program may extend, `AppHost` for one that knows the app it runs.
"""

from typing import Protocol, runtime_checkable

from attestkit.app_compose import AppCompose
from attestkit.event_log.journal import RuntimeLog
from attestkit.keys import AppKeys

__all__ = ["AppHost", "Backend", "RegisterExtender"]


@runtime_checkable
class Backend(Protocol):
    """One door to a TEE. Callers take turns; errors are attestkit's."""

    name: str  # "simulator"
    simulated: bool  # True: nothing it says is backed by hardware
    blocking: bool  # True: calls wait for a device, so an event loop puts them in a thread

    @classmethod
    def probe(cls) -> None:
        """Raise BackendUnavailableError, saying what is missing, if it cannot run here."""

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a raw quote over `report_data`, exactly 64 bytes.

        Raises:
            QuoteUnavailableError: The platform is here and gave no quote.
            BackendBusyError: Somebody else has the device.
            BackendError: Anything else that went wrong.
        """

    def read_event_log(self) -> bytes:
        """Return the firmware's log, the whole area with its fill; empty if there is none."""

    def close(self) -> None:
        """Let go of the device. A second call does nothing."""


@runtime_checkable
class RegisterExtender(Protocol):
    """A TEE with run-time measurement registers, RTMR0 to RTMR3, of 48 bytes each."""

    def read_rtmr(self, register: int) -> bytes:
        """Return what a register, 0 to 3, holds now."""

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend a register by a digest of 48 bytes; programs may extend RTMR2 and RTMR3."""

    def open_journal(self) -> RuntimeLog:
        """Return the runtime events of this TEE; every call the same object."""


@runtime_checkable
class AppHost(Protocol):
    """A TEE that knows its app: the files of a guest agent live beside this backend."""

    @property
    def app_compose(self) -> AppCompose:
        """What the app was deployed from."""

    @property
    def vm_config(self) -> str:
        """The machine's configuration, JSON text, as it was handed in."""

    @property
    def app_keys(self) -> AppKeys:
        """The app's keys."""
