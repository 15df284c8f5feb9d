"""Evidence from a guest agent, checked against the request and for consistency."""

from collections.abc import Callable
from typing import TypeVar

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.attester import evidence_source
from attestkit.attester.snp_source import check_host_data, parse_report
from attestkit.backends.base import Backend, GuestAgent
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import AttestKitError, BackendError, UnsupportedError
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.event_log.runtime_events import runtime_event
from attestkit.keys import KeyDeriver
from attestkit.quote import Quote

T = TypeVar("T")


class AgentSource(evidence_source.EvidenceSource):
    """Evidence and description of an app from its guest agent, which has event log and keys."""

    has_quotes = True

    def __init__(
        self, backend: Backend, agent: GuestAgent, context: evidence_source.SourceContext
    ) -> None:
        self._backend = backend
        self._agent = agent
        self._device, self._check_usable = context
        self._app_compose: AppCompose | None = None
        self._vm_config: str | None = None

    # -- evidence ------------------------------------------------------------------------------

    def quote_and_log(self, report_data: bytes) -> tuple[Quote, EventLog]:
        """Return a quote over 64 bytes of report data, and the event log that replays to it."""
        evidence = self.evidence(report_data)
        if evidence.quote is None:
            raise UnsupportedError(
                f"the agent runs on {evidence.platform}, which has no TDX quotes; use attest()",
                reason="no_quote",
            )
        return evidence.quote, evidence.event_log

    def evidence(self, report_data: bytes) -> Attestation:
        """Return evidence over 64 bytes of report data; ReplayError if its log does not replay."""
        with self._device:
            self._check_usable()
            return self._evidence(report_data)

    def _evidence(self, report_data: bytes) -> Attestation:
        response = self._agent.get_quote_response(report_data)
        evidence = _parse(lambda: Attestation.from_agent_response(response))
        for found in (_parse(lambda: _signed_report_data(evidence)), evidence.report_data):
            evidence_source.check_report_data(
                found,
                report_data,
                "the agent returned evidence over other report data than requested",
            )
        if (quote := evidence.quote) is not None:
            _parse(lambda: evidence.event_log).check(quote)
        return evidence

    def event_log(self) -> EventLog:
        """Return the agent's event log, which is not compared with the registers."""
        with self._device:
            self._check_usable()
            data = self._backend.read_event_log()
            return _parse(lambda: EventLog.parse(data) if data else EventLog())

    # -- registers -----------------------------------------------------------------------------

    def registers(self) -> Rtmrs:
        """Return RTMR0 to RTMR3 from a fresh quote."""
        quote = self.evidence(bytes(64)).quote
        if quote is None:
            raise UnsupportedError(evidence_source.NO_REGISTERS, reason="no_registers")
        return quote.rtmrs

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Emit an event (name and payload) through the agent; return it as in fresh evidence.

        Errors are those of `Attester.emit_event`. BackendError has the reason `outcome_unknown` if
        the agent accepted the event but its log cannot be read, and `register_unchanged` if the
        event is then not in its log.
        """
        evidence_source.check_name(name)
        with self._device:
            self._check_usable()
            before = self._runtime_events()
            # Without events the digest version is unknown; version 2 allows every name.
            runtime_event(name, payload, before[-1].version if before else 2)
            self._agent.emit_event(name, payload)
            try:
                after = self._runtime_events()
            except AttestKitError as error:  # a retry would emit the event twice
                raise BackendError(
                    f"event {name!r}: accepted by the agent, but reading its log failed: {error}; "
                    "check the log before emitting it again",
                    reason="outcome_unknown",
                ) from error
        old, new = _find_events(before, name, payload), _find_events(after, name, payload)
        if len(new) <= len(old):
            raise BackendError(
                f"event {name!r}: accepted by the agent, but not in its log; an agent that "
                "simulates a TEE may discard events",
                reason="register_unchanged",
            )
        return new[-1]

    def _runtime_events(self) -> tuple[Event, ...]:
        evidence = self._evidence(bytes(64))
        if evidence.quote is None:
            raise UnsupportedError(evidence_source.NO_REGISTERS, reason="no_registers")
        return evidence.event_log.runtime

    def measure_app(self, app_id: bytes | None) -> tuple[Event, ...]:
        """Raise UnsupportedError for any `app_id`: the agent's guest measures its app at boot."""
        del app_id
        raise UnsupportedError(
            "measure_app: not available with an agent, whose guest measures the app at boot",
            reason="feature",
        )

    # -- the app -------------------------------------------------------------------------------

    @property
    def app(self) -> "AgentSource":
        """Source of the app's description and keys: this object."""
        return self

    @property
    def app_compose(self) -> AppCompose:
        """The app's compose file, requested once."""
        with self._device:
            if self._app_compose is None:
                self._check_usable()
                data = self._agent.read_app_compose()
                self._app_compose = _parse(lambda: AppCompose.parse(data))
            return self._app_compose

    @property
    def vm_config(self) -> str:
        """The configuration of the VM from evidence, requested once."""
        with self._device:
            if self._vm_config is None:
                self._check_usable()
                self._vm_config = self._evidence(bytes(64)).config
            return self._vm_config

    @property
    def keys(self) -> KeyDeriver:
        """The app's keys, which remain in the agent."""
        return self._agent.keys


def _parse(parse: Callable[[], T]) -> T:
    return evidence_source.parse_response("malformed response of the agent", parse)


def _find_events(events: tuple[Event, ...], name: str, payload: bytes) -> list[Event]:
    return [event for event in events if (event.name, event.payload) == (name, payload)]


def _signed_report_data(evidence: Attestation) -> bytes:
    """Return the report data in the signed part; for an unknown platform, the claimed report data.

    Raises:
        ReplayError: If an SEV-SNP guest was launched with another mr_config document.
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
