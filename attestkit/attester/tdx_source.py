"""Evidence of a TD: a quote, and an event log that replays to its registers."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Final

from attestkit.attestation import MAX_SIZE, Attestation
from attestkit.attestation.tdx import WireLog
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.attester.evidence_source import (
    NO_REGISTERS,
    HostApp,
    SourceContext,
    check_name,
    check_report_data,
    parse_response,
)
from attestkit.backends.base import Backend, RegisterExtender
from attestkit.errors import (
    AttestKitError,
    JournalError,
    ReplayError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.event_log.journal_protocols import (
    RuntimeLog,
    mismatch_remedy,
    replay_from,
    size_in_evidence,
)
from attestkit.event_log.runtime_events import check_runtime_events, runtime_event
from attestkit.quote import Quote

# Bytes of evidence reserved for the quote, which some encodings write as decimal numbers.
_QUOTE_RESERVE: Final = 1 << 18
_EVENT_OVERHEAD: Final = 256  # maximum size of an event without name and payload


class TdSource:
    """Evidence from a backend with TDX quotes, and registers if it is a RegisterExtender."""

    has_quotes = True

    def __init__(self, backend: Backend, context: SourceContext, app: HostApp) -> None:
        self.app = app
        self._backend = backend
        self._extender = backend if isinstance(backend, RegisterExtender) else None
        self._device, self._check_usable = context
        self._journal: RuntimeLog | None = None
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
        """Return a quote over exactly 64 bytes."""
        with self._device:
            self._check_usable()  # again, with the lock held
            return self._quote(report_data)

    def quote_and_log(self, report_data: bytes) -> tuple[Quote, EventLog]:
        """Return a quote over exactly 64 bytes, and the event log that replays to it."""
        with self._lock_journal(), self._device:
            self._check_usable()  # again, with the lock held
            quote = self._quote(report_data)
            return quote, self._matching_log(quote)

    def _matching_log(self, quote: Quote) -> EventLog:
        """Return the log, which replays to a quote; the caller holds both locks."""
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
        """Return evidence over exactly 64 bytes."""
        config = self.app.vm_config
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
        extender = self._require_registers()
        with self._device:
            zero, one, two, three = map(extender.read_rtmr, range(4))
        return zero, one, two, three

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Extend RTMR3 by an event and append it to the log, atomically."""
        self._require_registers()
        check_name(name)
        with self._lock_journal(), self._device:
            self._check_usable()
            journal = self._open_journal()
            event = runtime_event(name, payload, journal.version)
            self._check_room(event)
            journal.emit(event)
            return event

    def measure_app(self, app_id: bytes | None) -> tuple[Event, ...]:
        """Measure the app as a dstack guest does at boot, unless that has been done."""
        from attestkit.dstack.boot_sequence import measure_app  # lazy: rarely needed
        from attestkit.dstack.host_shared_folder import HostShared

        extender, host = self._require_registers(), self.app.host
        if not isinstance(host, HostShared):
            raise UnsupportedError(
                "measure_app: not available with this backend, which measures the app at boot",
                reason="feature",
            )
        events = host.boot_events(app_id)
        with self._lock_journal(), self._device:
            self._check_usable()
            measure_app(self._open_journal(), lambda: extender.read_rtmr(3), events)
        return events

    def runtime_events(self) -> tuple[Event, ...]:
        """Return the runtime events of this boot."""
        self._require_registers()
        with self._lock_journal(), self._device:
            self._check_usable()
            return self._open_journal().events()

    def continue_boot(self, events: tuple[Event, ...]) -> None:
        """Emit those of the first events of this boot that the log does not have yet."""
        from attestkit.dstack.boot_sequence import continue_boot  # lazy: rarely needed

        extender = self._require_registers()
        with self._lock_journal(), self._device:
            self._check_usable()
            continue_boot(self._open_journal(), lambda: extender.read_rtmr(3), events)

    def _require_registers(self) -> RegisterExtender:
        if self._extender is None:
            raise UnsupportedError(NO_REGISTERS, reason="no_registers")
        return self._extender

    def _check_room(self, event: Event) -> None:
        """Raise an error if the event would make evidence exceed its limits."""
        self._read_log()
        config = len(self.app.vm_config.encode(errors="surrogatepass"))
        room = MAX_SIZE - _QUOTE_RESERVE - config - self._firmware_size
        size = size_in_evidence(event)
        if size > room:
            raise UsageError(
                f"event: too large, its payload of {len(event.payload)} bytes takes {size} bytes "
                f"of evidence, which is limited to {MAX_SIZE}",
                reason="too_large",
            )
        if self._events_size + size > room or len(self._log.events) >= MAX_ITEMS:
            raise JournalError(
                f"the runtime log is full: evidence is limited to {MAX_SIZE} bytes and "
                f"{MAX_ITEMS} events; reboot to empty the log",
                reason="too_large",
            )

    # -- locks and caches ----------------------------------------------------------------------

    def _lock_journal(self) -> AbstractContextManager[None]:
        """Prevent every process from emitting events; without registers, take the device lock."""
        return self._device if self._extender is None else self._open_journal().locked()

    def _open_journal(self) -> RuntimeLog:
        if self._journal is None:
            version = self.app.event_version
            with self._device:
                self._check_usable()
                assert self._extender is not None
                self._journal = self._extender.open_journal(version)
        return self._journal

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
        """Parse a new firmware event log and reset the cache."""
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

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait for calls in progress and block further ones."""
        with ExitStack() as stack:
            if self._journal is not None:
                with suppress(AttestKitError):  # close even if the log cannot be locked
                    stack.enter_context(self._journal.locked())
            stack.enter_context(self._device)
            yield
