"""Evidence of a TD: its quote, and a log that replays to the registers in it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Final

from attestkit.attestation import MAX_SIZE, Attestation
from attestkit.attestation.wire.event_log import WireLog
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.attester.evidence_source import NO_REGISTERS, HostApp, Owner, check_name, parse_quote
from attestkit.backends.base import Backend, RegisterExtender
from attestkit.errors import (
    AttestKitError,
    BackendError,
    FormatError,
    JournalError,
    ReplayError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from attestkit.event_log import Event, EventLog, Rtmrs
from attestkit.event_log.journal_protocols import RuntimeLog, cure, replay_from, size_in_evidence
from attestkit.event_log.runtime_events import check_runtime_events, runtime_event
from attestkit.quote import Quote

__all__ = ["TdSource"]

# Bytes of evidence that are kept free for a quote, which some encodings write as numbers.
_FOR_THE_QUOTE: Final = 1 << 18
_PER_EVENT: Final = 256  # what an event takes besides name and payload, at most


class TdSource:
    """A backend with quotes; with registers too if it is a RegisterExtender."""

    has_quotes = True

    def __init__(self, backend: Backend, owner: Owner, app: HostApp) -> None:
        self.app = app
        self._backend = backend
        self._extender = backend if isinstance(backend, RegisterExtender) else None
        self._device, self._check_usable = owner
        self._journal: RuntimeLog | None = None
        # What depends on the log alone is kept until the log grows.
        self._area: bytes | None = None
        self._firmware = EventLog()
        self._firmware_size = 0
        self._events: tuple[Event, ...] = ()
        self._events_size = 0
        self._log = self._firmware
        self._wire_log = WireLog()
        # Registers that the firmware's log with these events was found to explain.
        self._agreed: tuple[Rtmrs, tuple[Event, ...]] | None = None

    # -- evidence ------------------------------------------------------------------------------

    def get_quote(self, report_data: bytes) -> Quote:
        """Return a quote over exactly 64 bytes."""
        with self._device:
            self._check_usable()  # again, now that nobody can close it
            return self._quote(report_data)

    def quote_and_log(self, report_data: bytes) -> tuple[Quote, EventLog]:
        """Return a quote over exactly 64 bytes, and the log that replays to its registers."""
        with self._history(), self._device:
            self._check_usable()  # again, now that nobody can close it
            quote = self._quote(report_data)
            log, agreed = self._read_log(), self._agreed
            if agreed is None or agreed[0] != quote.rtmrs or agreed[1] is not self._events:
                if not self._has_grown_to(quote.rtmrs):
                    self._check(log, quote)
                self._agreed = quote.rtmrs, self._events
            return quote, log

    def _check(self, log: EventLog, quote: Quote) -> None:
        """Hold the log to the quote; the error says what its reader can do."""
        try:
            log.check(quote)
        except ReplayError as error:
            text, journal = f"{error}; attestkit doctor says what may have happened", self._journal
            if journal is not None and log.replay()[3] != quote.rtmrs[3]:
                place = f"; the events of RTMR3 belong in {journal.place}" if journal.place else ""
                text = f"{error}{place}; {cure(journal.place)}"
            if not self._area:
                text += "; there is no firmware's log here (CCEL) to explain RTMR0 to RTMR2"
            raise ReplayError(text, steps=error.steps, reason=error.reason) from error

    def _has_grown_to(self, rtmrs: Rtmrs) -> bool:
        """Tell whether the log agreed before, and its new events explain what the registers are.

        Of a long log nothing is replayed again then. Where this cannot tell, `EventLog.check` does.
        """
        if self._agreed is None:
            return False
        (*others, rtmr3), known = self._agreed
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
        self._wire_log = known = self._wire_log.of(log)
        return Attestation.for_tdx(quote, log, config, known=known)

    def event_log(self) -> EventLog:
        """Return the firmware's log with the runtime events behind it."""
        with self._history(), self._device:
            self._check_usable()  # again, now that nobody can close it
            return self._read_log()

    # -- registers -----------------------------------------------------------------------------

    def registers(self) -> Rtmrs:
        """Return RTMR0 to RTMR3."""
        extender = self._need_registers()
        with self._device:
            zero, one, two, three = map(extender.read_rtmr, range(4))
        return zero, one, two, three

    def emit_event(self, name: str, payload: bytes) -> Event:
        """Extend RTMR3 by an event and log it, or neither."""
        self._need_registers()
        check_name(name)
        with self._history(), self._device:
            self._check_usable()
            journal = self._open_journal()
            event = runtime_event(name, payload, journal.version)
            self._check_room(event)
            journal.emit(event)
            return event

    def measure_app(self, app_id: bytes | None) -> tuple[Event, ...]:
        """Measure the app as a guest does while it boots, unless that has been done."""
        from attestkit.dstack.boot_sequence import measure  # only whoever boots so needs it
        from attestkit.dstack.host_shared_folder import HostShared

        extender, host = self._need_registers(), self.app.host
        if not isinstance(host, HostShared):
            raise UnsupportedError("this backend measures its app itself, when it boots")
        events = host.boot_events(app_id)
        with self._history(), self._device:
            self._check_usable()
            measure(self._open_journal(), lambda: extender.read_rtmr(3), events)
        return events

    def _need_registers(self) -> RegisterExtender:
        if self._extender is None:
            raise UnsupportedError(NO_REGISTERS)
        return self._extender

    def _check_room(self, event: Event) -> None:
        """Refuse an event that would make evidence which nobody reads any more."""
        self._read_log()
        config = len(self.app.vm_config.encode(errors="surrogatepass"))
        room = MAX_SIZE - _FOR_THE_QUOTE - config - self._firmware_size
        size = size_in_evidence(event)
        if size > room:
            raise UsageError(
                f"an event of {len(event.payload)} bytes is too large: it would take {size} bytes "
                f"of evidence, which may have {MAX_SIZE}"
            )
        if self._events_size + size > room or len(self._log.events) >= MAX_ITEMS:
            raise JournalError(
                f"the runtime log is full: with one more event evidence would be over {MAX_SIZE} "
                f"bytes or {MAX_ITEMS} events, and nobody would read it; a reboot empties the log"
            )

    # -- turns ---------------------------------------------------------------------------------

    def _history(self) -> AbstractContextManager[None]:
        """Keep the history as it is: nobody emits meanwhile, in this process or another."""
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
        """Return a quote that is well formed and over what was asked."""
        return parse_quote(self._backend.get_quote(report_data), report_data)

    def _read_log(self) -> EventLog:
        """Return the log as it is now, the same object as long as it is the same log."""
        area = self._backend.read_event_log()
        events = () if self._extender is None else self._open_journal().events()
        if area is not self._area and area != self._area:
            self._take_firmware(area)
        if events is not self._events:
            self._take_events(events)
        return self._log

    def _take_firmware(self, area: bytes) -> None:
        """Begin anew with another log of the firmware."""
        try:
            self._firmware = EventLog.parse(area) if area else EventLog()
            events = self._firmware.events
        except (FormatError, UsageError) as error:
            raise BackendError(f"the firmware's log is malformed: {error}") from error
        self._firmware_size = sum(
            _PER_EVENT + len(event.name.encode()) + len(event.payload) for event in events
        )
        self._area, self._events, self._log = area, (), self._firmware
        self._events_size = 0
        self._agreed = None

    def _take_events(self, events: tuple[Event, ...]) -> None:
        """Go on with more events, or with others if it was booted again."""
        known, log, size = len(self._events), self._log, self._events_size
        if events[:known] != self._events:
            self._agreed = None
            known, log, size = 0, self._firmware, 0
        log = log.with_runtime(events[known:])
        size += sum(map(size_in_evidence, events[known:]))
        # All at once: an interrupt in between would have events taken twice.
        self._events, self._log, self._events_size = events, log, size

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody works with the backend, and keep it so."""
        with ExitStack() as stack:
            if self._journal is not None:
                with suppress(AttestKitError):  # a log that cannot be locked keeps nobody
                    stack.enter_context(self._journal.locked())
            stack.enter_context(self._device)
            yield
