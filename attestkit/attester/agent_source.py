"""Evidence of somebody else's guest agent, held against what was asked and against itself."""

import hmac
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.attester.evidence_source import NO_REGISTERS, Owner, check_name
from attestkit.attester.snp_source import check_host_data, parse_report
from attestkit.backends.base import Backend, GuestAgent
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import (
    AttestKitError,
    BackendError,
    ConfigError,
    FormatError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.event_log.runtime_events import runtime_event
from attestkit.keys import KeyDeriver
from attestkit.quote import Quote

__all__ = ["AgentSource"]

T = TypeVar("T")


class AgentSource:
    """A backend behind which an agent has the log and the keys; it is the app's source, too."""

    has_quotes = True

    def __init__(self, backend: Backend, agent: GuestAgent, owner: Owner) -> None:
        self._backend = backend
        self._agent = agent
        self._device, self._check_usable = owner
        self._app_compose: AppCompose | None = None
        self._vm_config: str | None = None

    # -- evidence ------------------------------------------------------------------------------

    def get_quote(self, report_data: bytes) -> Quote:
        """Return a quote over exactly 64 bytes."""
        return self.quote_and_log(report_data)[0]

    def quote_and_log(self, report_data: bytes) -> tuple[Quote, EventLog]:
        """Return a quote over exactly 64 bytes, and the log that replays to its registers."""
        evidence = self.evidence(report_data)
        if evidence.quote is None:
            raise UnsupportedError(
                f"the agent runs on {evidence.platform}, which has no TDX quotes: ask for evidence "
                "with attest()"
            )
        return evidence.quote, evidence.event_log

    def evidence(self, report_data: bytes) -> Attestation:
        """Return the agent's evidence over exactly 64 bytes."""
        with self._device:
            self._check_usable()
            return self._evidence(report_data)

    def _evidence(self, report_data: bytes) -> Attestation:
        answer = self._agent.get_quote_response(report_data)
        evidence = _read(lambda: Attestation.from_agent_response(answer))
        sealed = _read(lambda: _sealed(evidence))
        both = (sealed, evidence.report_data)
        if not all(hmac.compare_digest(signed, report_data) for signed in both):
            raise BackendError("the agent gave evidence over other report data than asked")
        if (quote := evidence.quote) is not None:
            _read(lambda: evidence.event_log).check(quote)
        return evidence

    def event_log(self) -> EventLog:
        """Return the agent's log; nothing holds it against the registers."""
        with self._device:
            self._check_usable()
            data = self._backend.read_event_log()
            return _read(lambda: EventLog.parse(data) if data else EventLog())

    # -- registers -----------------------------------------------------------------------------

    def registers(self) -> Rtmrs:
        """Return RTMR0 to RTMR3, as a fresh quote has them."""
        quote = self.evidence(bytes(64)).quote
        if quote is None:
            raise UnsupportedError(NO_REGISTERS)
        return quote.rtmrs

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Have the agent emit an event, and find it in the agent's evidence."""
        check_name(name)
        with self._device:
            self._check_usable()
            before = self._runtime_events()
            # Without events nobody knows the version yet; names are then the agent's to refuse.
            runtime_event(name, payload, before[-1].version if before else 2)
            self._agent.emit_event(name, payload)
            try:
                after = self._runtime_events()
            except AttestKitError as error:  # of whatever kind: asking again would emit it twice
                raise BackendError(
                    f"the agent took the event {name!r}, and whether its log has it is not known: "
                    f"{error}; look for it in the log before emitting it again"
                ) from error
        old, new = _called(before, name, payload), _called(after, name, payload)
        if len(new) <= len(old):
            raise BackendError(
                f"the agent took the event {name!r}, and its log does not have it: agents that "
                "simulate a TEE may throw events away"
            )
        return new[-1]

    def _runtime_events(self) -> tuple[Event, ...]:
        evidence = self._evidence(bytes(64))
        if evidence.quote is None:
            raise UnsupportedError(NO_REGISTERS)
        return evidence.event_log.runtime

    def measure_app(self, app_id: bytes | None) -> tuple[Event, ...]:
        """Refuse: the agent's guest did when it booted."""
        del app_id
        raise UnsupportedError("behind an agent the guest measures its app itself, when it boots")

    # -- the app -------------------------------------------------------------------------------

    @property
    def app(self) -> "AgentSource":
        """Itself: the agent knows its app."""
        return self

    @property
    def app_compose(self) -> AppCompose:
        """What the app was deployed from; the agent is asked once."""
        with self._device:
            if self._app_compose is None:
                self._check_usable()
                data = self._agent.read_app_compose()
                self._app_compose = _read(lambda: AppCompose.parse(data))
            return self._app_compose

    @property
    def vm_config(self) -> str:
        """The machine's configuration as it is in evidence; the agent is asked once."""
        with self._device:
            if self._vm_config is None:
                self._check_usable()
                self._vm_config = self._evidence(bytes(64)).config
            return self._vm_config

    @property
    def keys(self) -> KeyDeriver:
        """The app's keys, which stay with the agent."""
        return self._agent.keys

    def alone(self) -> AbstractContextManager[None]:
        """Wait until nobody works with the backend, and keep it so."""
        return self._device


def _read(read: Callable[[], T]) -> T:
    """Return what the agent's answer holds; what is malformed in it is the platform's fault."""
    try:
        return read()
    except (FormatError, ConfigError, UsageError) as error:
        raise BackendError(f"the agent's answer is malformed: {error}") from error


def _called(events: tuple[Event, ...], name: str, payload: bytes) -> list[Event]:
    return [event for event in events if (event.name, event.payload) == (name, payload)]


def _sealed(evidence: Attestation) -> bytes:
    """Return the report data that the platform signed, or, where it is not known, that is claimed.

    Raises:
        ReplayError: An SNP guest was launched with another document than the evidence has.
    """
    platform = evidence.evidence.platform
    if isinstance(platform, SevSnp):
        report = parse_report(platform.report)
        if platform.mr_config:
            check_host_data(report, platform.mr_config)
        return report.report_data
    if (quote := evidence.quote) is not None:
        return quote.report_data
    document = evidence.nitro_document
    return evidence.report_data if document is None else document.user_data
