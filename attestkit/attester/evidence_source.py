"""Where an Attester's evidence comes from: one class per kind of backend behind one protocol."""

import hmac
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, Protocol

from attestkit._system.fifo_lock import Turns
from attestkit.attestation import AppInfo, Attestation
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.backends.base import AppHost
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import BackendError, FormatError, UnsupportedError, UsageError
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.event_log.runtime_events import RESERVED_NAMES
from attestkit.keys import KeyDeriver, LocalKeys
from attestkit.quote import Quote

__all__ = [
    "NO_REGISTERS",
    "App",
    "HostApp",
    "Owner",
    "Source",
    "app_info",
    "check_name",
    "parse_quote",
]

NO_REGISTERS: Final = "this platform has no run-time registers that a program can extend"
NO_APP: Final = "this backend knows no app: it has neither its description nor its keys"


class Owner(NamedTuple):
    """What a source has from its Attester."""

    device: Turns  # taken around every call of the backend, inside the journal's lock if any
    check_usable: Callable[[], None]  # raises UsageError; asked again once the device is ours


class App(Protocol):
    """What a source knows about the app; each raises UnsupportedError where it does not."""

    @property
    def app_compose(self) -> AppCompose:
        """What the app was deployed from."""
        ...

    @property
    def vm_config(self) -> str:
        """The machine's configuration, JSON text; empty where nobody knows it."""
        ...

    @property
    def keys(self) -> KeyDeriver:
        """The app's keys."""
        ...


class Source(Protocol):
    """Makes evidence with one backend. Threads may share it; errors are those of `Attester`."""

    has_quotes: bool  # False: its evidence is no TDX quote

    @property
    def app(self) -> App:
        """The app, as this source knows it."""
        ...

    def get_quote(self, report_data: bytes) -> Quote:
        """Return a quote over exactly 64 bytes."""
        ...

    def quote_and_log(self, report_data: bytes) -> tuple[Quote, EventLog]:
        """Return a quote over exactly 64 bytes, and the log that replays to its registers."""
        ...

    def evidence(self, report_data: bytes) -> Attestation:
        """Return evidence over exactly 64 bytes, which agrees with itself."""
        ...

    def event_log(self) -> EventLog:
        """Return the log as it is now."""
        ...

    def registers(self) -> Rtmrs:
        """Return RTMR0 to RTMR3."""
        ...

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Extend RTMR3 by an event and log it, or neither."""
        ...

    def measure_app(self, app_id: bytes | None) -> tuple[Event, ...]:
        """Measure the app as a guest does while it boots, unless that has been done."""
        ...

    def alone(self) -> AbstractContextManager[None]:
        """Wait until nobody works with the backend, and keep it so."""
        ...


class HostApp:
    """The app as the backend, or its host's folder, has it. None: nobody knows one."""

    def __init__(self, host: AppHost | None) -> None:
        self.host = host
        self._keys: KeyDeriver | None = None

    def _known(self) -> AppHost:
        if self.host is None:
            raise UnsupportedError(NO_APP)
        return self.host

    @property
    def app_compose(self) -> AppCompose:
        """What the app was deployed from."""
        return self._known().app_compose

    @property
    def vm_config(self) -> str:
        """The machine's configuration, JSON text; empty where nobody knows it."""
        return "" if self.host is None else self.host.vm_config

    @property
    def keys(self) -> KeyDeriver:
        """The app's keys."""
        if self._keys is None:
            self._keys = LocalKeys(self._known().app_keys)
        return self._keys

    @property
    def event_version(self) -> int | None:
        """The digest version that the app wants of its runtime events; None if nobody knows it."""
        try:
            return self._known().app_compose.event_log_version
        except UnsupportedError:
            return None


def app_info(evidence: Attestation) -> AppInfo:
    """Return who the app in `evidence` is.

    Raises:
        UnsupportedError: On SEV-SNP, if the host gave no document that says so.
        FormatError: Something in the evidence is malformed.
        ReplayError: The evidence contradicts itself.
    """
    platform = evidence.evidence.platform
    if isinstance(platform, SevSnp) and not platform.mr_config:
        raise UnsupportedError(
            "the host gave no mr_config document, which on SEV-SNP says who the app is: it belongs "
            "into .sys-config.json in the folder that the host shares"
        )
    return evidence.app_info()


def parse_quote(raw: bytes, report_data: bytes) -> Quote:
    """Return a quote that is well formed and over what was asked; BackendError otherwise."""
    try:
        quote = Quote.parse(raw)
    except (FormatError, UsageError) as error:
        raise BackendError(f"the platform gave a malformed quote: {error}") from error
    if not hmac.compare_digest(quote.report_data, report_data):
        raise BackendError("the platform gave a quote over other report data than asked")
    return quote


def check_name(name: object) -> None:
    """Raise UsageError for the name of an event that no app may emit."""
    if name == "":
        raise UsageError("event name cannot be empty")
    if isinstance(name, str) and name in RESERVED_NAMES:
        raise UsageError(f"event name {name!r} is reserved: only a boot measures it")
