"""What a backend is: one door to a TEE. Bytes in, bytes out; it never parses.

An ability that some backends lack is a protocol of its own: `RegisterExtender` for a TEE whose
registers a program may extend, `SnpReporter` for one whose evidence is an SNP report, `GuestAgent`
for one behind somebody else's agent, `AppHost` for one that knows the app it runs.
"""

from typing import Final, NamedTuple, Protocol, TypeGuard, runtime_checkable

from attestkit.dstack.app_compose import AppCompose
from attestkit.event_log.journal import RuntimeLog
from attestkit.keys import AppKeys, KeyDeriver

__all__ = [
    "AppHost",
    "Backend",
    "GuestAgent",
    "LaunchRecord",
    "Recorded",
    "RegisterExtender",
    "SnpEvidence",
    "SnpReporter",
    "hosts_app",
]


@runtime_checkable
class Backend(Protocol):
    """One door to a TEE. Callers take turns; errors are attestkit's."""

    name: str  # "simulator"
    simulated: bool  # True: nothing it says is backed by hardware
    blocking: bool  # True: calls wait for a device, so an event loop puts them in a thread

    @classmethod
    def probe(cls) -> None:
        """Raise BackendUnavailableError, saying what is missing, if it cannot run here."""
        ...

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a raw quote over `report_data`, exactly 64 bytes; from an SnpReporter its report.

        Raises:
            UsageError: `report_data` is not 64 bytes.
            QuoteUnavailableError: The platform is here and gave no quote.
            BackendBusyError: Somebody else has the device.
            BackendError: Anything else that went wrong.
        """
        ...

    def read_event_log(self) -> bytes:
        """Return the log as `EventLog.parse` takes it; empty if there is none.

        It is the firmware's, the whole area with its fill; a GuestAgent's has all events. A TD
        without one gives quotes, but evidence only while its registers are all zero: nothing
        explains them otherwise, and `attestkit.testing.contract` fails it as `attest` does.
        """
        ...

    def close(self) -> None:
        """Let go of the device. A second call does nothing."""
        ...


@runtime_checkable
class RegisterExtender(Protocol):
    """A TEE with run-time measurement registers, RTMR0 to RTMR3, of 48 bytes each."""

    def read_rtmr(self, register: int) -> bytes:
        """Return what a register, 0 to 3, holds now."""
        ...

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend a register by a digest of 48 bytes; programs may extend RTMR2 and RTMR3."""
        ...

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the runtime events of this TEE; every call the same object.

        `version` is the digest version that the app asks for, None if it asks for none; the first
        call's counts.
        """
        ...


class SnpEvidence(NamedTuple):
    """What AMD SEV-SNP says: both of one request."""

    report: bytes  # 1184 bytes
    certificates: bytes  # the host's table of certificates; empty where it has none


@runtime_checkable
class SnpReporter(Protocol):
    """An SEV-SNP guest: it has reports in place of quotes, and no registers to extend."""

    def get_snp_report(self, report_data: bytes) -> SnpEvidence:
        """Return a report over `report_data`, exactly 64 bytes; errors as `Backend.get_quote`."""
        ...


@runtime_checkable
class GuestAgent(Protocol):
    """A TEE behind a guest agent, which keeps the log and the keys, and extends the register."""

    def get_quote_response(self, report_data: bytes) -> str:
        """Return the agent's whole answer, JSON as `Attestation.from_agent_response` takes it.

        `report_data` is exactly 64 bytes; errors are those of `Backend.get_quote`.
        """
        ...

    def emit_event(self, name: str, payload: bytes) -> None:
        """Have RTMR3 extended by an event; errors are those of `Attester.emit_event`."""
        ...

    def read_app_compose(self) -> bytes:
        """Return what the app was deployed from; UnsupportedError if the agent hides it."""
        ...

    @property
    def keys(self) -> KeyDeriver:
        """The app's keys, which stay with the agent; nothing is asked yet."""
        ...


@runtime_checkable
class AppHost(Protocol):
    """A TEE that knows its app: the files of a guest agent live beside this backend.

    Each attribute raises UnsupportedError where it is not known. So ask `hosts_app` whether a
    backend is one: before Python 3.12 `isinstance` reads the attributes, and raises that too.
    """

    @property
    def app_compose(self) -> AppCompose:
        """What the app was deployed from."""
        ...

    @property
    def vm_config(self) -> str:
        """The machine's configuration, JSON text, as it was handed in."""
        ...

    @property
    def app_keys(self) -> AppKeys:
        """The app's keys."""
        ...


@runtime_checkable
class LaunchRecord(Protocol):
    """An AppHost that has the document of its guest's launch, which says who the app is."""

    @property
    def mr_config(self) -> str:
        """The document whose hash is sealed at launch, JSON text; empty if there is none."""
        ...


_OF_AN_APP_HOST: Final = ("app_compose", "vm_config", "app_keys")


class _Hosting(Backend, AppHost, Protocol):
    """Both."""


def hosts_app(backend: Backend) -> TypeGuard[_Hosting]:
    """Tell whether `backend` is an `AppHost`, without asking it for anything."""
    return all(hasattr(type(backend), name) or hasattr(backend, name) for name in _OF_AN_APP_HOST)


@runtime_checkable
class Recorded(Protocol):
    """A backend that answers what another one did, or is recording it."""

    recorded: str  # the name of that one
    recorded_simulated: bool  # and what it says of itself
    trust_anchor: bytes | None  # root certificate (DER) that vouches for its evidence, if simulated
