"""Evidence of a TD: a quote, and an event log that replays to its registers."""

from contextlib import AbstractContextManager
from typing import Final

from attestkit.attestation import Attestation
from attestkit.attestation.tdx import WireLog
from attestkit.attester.evidence_source import (
    EventRegister,
    HostApp,
    JournalSource,
    LoggedSize,
    SourceContext,
    check_report_data,
    parse_response,
)
from attestkit.backends.base import Backend, RegisterExtender
from attestkit.errors import ReplayError, VerificationError
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.event_log.journal_protocols import mismatch_remedy, replay_from, size_in_evidence
from attestkit.event_log.runtime_events import check_runtime_events
from attestkit.quote import Quote

_EVENT_OVERHEAD: Final = 256  # maximum size of an event without name and payload


class TdSource(JournalSource):
    """Evidence from a backend with TDX quotes, and registers if it is a RegisterExtender."""

    has_quotes = True

    def __init__(self, backend: Backend, context: SourceContext, app: HostApp) -> None:
        self._backend = backend
        self._extender = extender = backend if isinstance(backend, RegisterExtender) else None
        super().__init__(context, app, None if extender is None else _event_register(extender))
        # Cache of values that depend on the log alone.
        self._firmware_data: bytes | None = None
        self._firmware = EventLog()
        self._firmware_size = 0
        self._events: tuple[Event, ...] = ()
        self._events_size = 0
        self._log = self._firmware
        self._wire_log = WireLog()
        # The last registers that the log matched, and its runtime events at that time.
        self._matched: tuple[Rtmrs, tuple[Event, ...]] | None = None

    # -- evidence ------------------------------------------------------------------------------

    def get_quote(self, report_data: bytes) -> Quote:
        """Return a quote over 64 bytes of report data."""
        with self._device:
            self._check_usable()  # again, with the lock held
            return self._quote(report_data)

    def quote_and_log(self, report_data: bytes) -> tuple[Quote, EventLog]:
        """Return a quote over 64 bytes of report data, and the event log that replays to it."""
        with self._lock_journal(), self._device:
            self._check_usable()  # again, with the lock held
            quote = self._quote(report_data)
            return quote, self._matching_log(quote)

    def _matching_log(self, quote: Quote) -> EventLog:
        """Return the current event log; ReplayError unless it replays to the quote's registers.

        The caller holds the journal's lock and the device lock.
        """
        log, matched = self._read_log(), self._matched
        if matched is None or matched[0] != quote.rtmrs or matched[1] is not self._events:
            if not self._new_events_match(quote.rtmrs):
                self._check(log, quote)
            self._matched = quote.rtmrs, self._events
        return log

    def _check(self, log: EventLog, quote: Quote) -> None:
        """Raise ReplayError, with possible remedies, unless the log replays to the quote."""
        try:
            log.check(quote)
        except ReplayError as error:
            text, journal = f"{error}; run attestkit doctor for possible causes", self._journal
            if journal is not None and log.replay()[3] != quote.rtmrs[3]:
                place = f"; the events of RTMR3 belong in {journal.path}" if journal.path else ""
                text = f"{error}{place}; {mismatch_remedy(journal.path)}"
            if not self._firmware_data:
                text += "; the firmware event log (CCEL) for RTMR0 to RTMR2 is missing"
            raise ReplayError(
                text,
                steps=error.steps,
                reason=error.reason,
                register=error.register,
                expected=error.expected,
                actual=error.actual,
            ) from error

    def _new_events_match(self, rtmrs: Rtmrs) -> bool:
        """Return whether the log matched before, and its new events replay to `rtmrs`.

        This avoids a replay of the whole log; False means that `EventLog.check` has to decide.
        """
        if self._matched is None:
            return False
        (*others, rtmr3), known = self._matched
        new = self._events[len(known) :]
        try:
            check_runtime_events(new)
        except VerificationError:
            return False
        return (*others, replay_from(rtmr3, new)) == rtmrs

    def evidence(self, report_data: bytes) -> Attestation:
        """Return evidence over 64 bytes of report data, whose log replays to its quote."""
        config = self._app.vm_config
        quote, log = self.quote_and_log(report_data)
        self._wire_log = known = self._wire_log.extend_to(log)
        return Attestation.for_tdx(quote, log, config, known=known)

    def event_log(self) -> EventLog:
        """Return the firmware event log followed by the runtime events."""
        with self._lock_journal(), self._device:
            self._check_usable()  # again, with the lock held
            return self._read_log()

    # -- registers -----------------------------------------------------------------------------

    def registers(self) -> Rtmrs:
        """Return RTMR0 to RTMR3."""
        if self._extender is None:
            return super().registers()
        with self._device:
            zero, one, two, three = map(self._extender.read_rtmr, range(4))
        return zero, one, two, three

    def _logged_size(self, events: tuple[Event, ...]) -> LoggedSize:
        """Return the size that the event log takes in evidence with the runtime events `events`."""
        del events  # which this object has, too
        self._read_log()
        return LoggedSize(self._firmware_size, self._events_size, len(self._log.events))

    # -- locks and caches ----------------------------------------------------------------------

    def _lock_journal(self) -> AbstractContextManager[None]:
        """Return the lock of the journal, against other emitters; without one, of the device."""
        return self._device if self._extender is None else self._open_journal().locked()

    def _quote(self, report_data: bytes) -> Quote:
        """Return the backend's quote over `report_data`."""
        raw = self._backend.get_quote(report_data)
        quote = parse_response("the platform returned a malformed quote", Quote.parse, raw)
        check_report_data(
            quote.report_data,
            report_data,
            "the platform returned a quote over other report data than requested",
        )
        return quote

    def _read_log(self) -> EventLog:
        """Return the current event log; the same object until it changes."""
        data = self._backend.read_event_log()
        events = () if self._extender is None else self._open_journal().events()
        if data is not self._firmware_data and data != self._firmware_data:
            self._set_firmware_log(data)
        if events is not self._events:
            self._set_events(events)
        return self._log

    def _set_firmware_log(self, data: bytes) -> None:
        """Parse `data`, a new firmware event log (empty for none), and reset the cache."""
        problem = "malformed firmware event log"
        self._firmware = parse_response(problem, EventLog.parse, data) if data else EventLog()
        events = parse_response(problem, lambda: self._firmware.events)
        self._firmware_size = sum(
            _EVENT_OVERHEAD + len(event.name.encode()) + len(event.payload) for event in events
        )
        self._firmware_data, self._events, self._log = data, (), self._firmware
        self._events_size = 0
        self._matched = None

    def _set_events(self, events: tuple[Event, ...]) -> None:
        """Append new runtime events, or replace all after a reboot."""
        known, log, size = len(self._events), self._log, self._events_size
        if events[:known] != self._events:
            self._matched = None
            known, log, size = 0, self._firmware, 0
        log = log.with_runtime(events[known:])
        size += sum(map(size_in_evidence, events[known:]))
        # One statement: an interrupt in between would count the events twice.
        self._events, self._log, self._events_size = events, log, size


def _event_register(extender: RegisterExtender) -> EventRegister:
    return EventRegister("RTMR3", lambda: extender.read_rtmr(3), extender.open_journal)
