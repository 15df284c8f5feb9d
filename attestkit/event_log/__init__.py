"""Event logs: of TDs, of TPMs and of IMA; their formats, and their replay to registers.

An event log is not signed. It is authentic only if the replay of its digests equals the registers
in a verified quote; `EventLog.check` compares them. Registers are numbered 0 to 3, as the RTMRs.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from attestkit import _native
from attestkit._argument_checks import require_bytes, utf8, wrong_type
from attestkit._sanitize import shown
from attestkit.errors import FormatError, ReplayError, UsageError, VerificationError
from attestkit.event_log import agent_json, cel
from attestkit.event_log.agent_json import AgentJsonSource
from attestkit.event_log.event import (
    DIGEST_SIZE,
    RUNTIME_REGISTER,
    Event,
    LogSource,
    WireEvent,
    event_from_wire,
    runtime_digest,
)
from attestkit.event_log.event_types import NO_ACTION, RUNTIME_EVENT_TYPE
from attestkit.event_log.runtime_events import check_runtime_events, check_v2, parse_runtime_lines
from attestkit.event_log.tcg import CcelSource, TpmEvent, TpmEventLog, identify_other_log

__all__ = ["Event", "EventLog", "Rtmrs", "TpmEvent", "TpmEventLog", "WireEvent"]

# Bytes after leading white space from which `parse` detects the kind of log.
_HEAD = 256

# Faster than calling the classes: they skip the Python-level constructors.
_new = object.__new__
_new_tuple = tuple.__new__
# Returns events, runtime events and columns; None for events that are left to Python code.
_make_events = _native.event_maker(Event)

Rtmrs = tuple[bytes, bytes, bytes, bytes]
"""Values of RTMR0 to RTMR3, 48 bytes each."""


class RtmrSource(Protocol):
    """A quote, or another object with RTMR values, against which a log is checked."""

    @property
    def rtmrs(self) -> Rtmrs:
        """RTMR0 to RTMR3, 48 bytes each."""
        ...


class EventLog:
    """The event log of a TD: events of firmware and boot loader, then runtime events."""

    __slots__ = ("_columns", "_events", "_regular", "_runtime", "_source", "_v2_error", "_warnings")

    # Register numbers and digests of the events that extend, packed for the native core.
    _columns: tuple[bytes, bytes]
    # Decoded from `_source` on first use; until then None.
    _events: tuple[Event, ...] | None
    _source: LogSource | None
    # Whether `check_runtime_events` is known to pass; without a source.
    _regular: bool
    # Selected from the events on first use; until then None.
    _runtime: tuple[Event, ...] | None
    # Error text of the first version 2 event that does not match its preimage, for `check_events`.
    _v2_error: str | None
    _warnings: tuple[str, ...]

    def __init__(self, events: Iterable[Event] = ()) -> None:
        """Create a log from events.

        Args:
            events: In the order of their extension. Digests have 48 bytes; the digest of a runtime
                event may be empty.

        Raises:
            UsageError: If an event is not valid; the message gives its index.
        """
        events = tuple(events)
        for index, event in enumerate(events):
            _check_event(event, index)
        self._set(events, _columns(events))

    def _set(
        self,
        events: tuple[Event, ...] | None,
        columns: tuple[bytes, bytes],
        source: LogSource | None = None,
    ) -> None:
        self._columns = columns
        self._events = events
        self._source = source
        self._regular = False
        self._runtime = self._v2_error = None
        self._warnings = ()

    @classmethod
    def _of(
        cls,
        events: tuple[Event, ...],
        columns: tuple[bytes, bytes] | None = None,
        v2_error: str | None = None,
        warnings: tuple[str, ...] = (),
    ) -> "EventLog":
        """Create a log from events that are known to be valid.

        Args:
            events: The events.
            columns: Registers, a byte each, and digests of the extending events; None: computed.
            v2_error: Error of the first version 2 event that does not match its preimage.
            warnings: See `warnings`.
        """
        self = _new(cls)
        self._set(events, _columns(events) if columns is None else columns)
        self._v2_error, self._warnings = v2_error, warnings
        return self

    @classmethod
    def parse(cls, data: bytes | str) -> "EventLog":
        """Parse the event log of a TD, and detect its format.

        The formats are: CCEL (binary), the JSON array of the dstack guest agent, the lines of its
        runtime log, and a Canonical Event Log (CEL) in TLV, CBOR or JSON.

        Raises:
            FormatError: If the format is not one of these, or the log is malformed. The error for
                a log of another kind, such as that of a TPM, names the kind.
            UsageError: If `data` is neither `bytes` nor `str`.
        """
        if isinstance(data, str):
            head = data.lstrip(" \t\r\n")[:_HEAD].encode(errors="replace")
        elif isinstance(data, bytes):
            head = data.lstrip(b" \t\r\n")[:_HEAD]
        else:
            raise wrong_type("event log", "bytes or text", data)
        if not head:
            raise FormatError("event log: must not be empty", offset=0, reason="missing")
        start = head[:1]
        if cel.detect_encoding(head) is not None:
            return cls.from_cel(data)
        if start == b"[":
            return cls._from_array(data)
        if start == b"{":
            lines = data if isinstance(data, bytes) else utf8(data, "event log")
            return cls._of(parse_runtime_lines(lines))
        if isinstance(data, str):
            message = "event log: text must be a JSON array or lines of JSON"
            raise FormatError(message, offset=0, reason="unrecognized")
        return cls.from_ccel(data)

    @classmethod
    def from_ccel(cls, data: bytes) -> "EventLog":
        """Parse a CCEL: the whole log area that the ACPI table CCEL refers to, with its padding.

        The three events of the ACPI tables get the names that the dstack guest agent uses.

        Raises:
            FormatError: If the log is malformed or of another kind, or exceeds 16 MiB, 65,536
                records, or 1 MiB of data in one event.
            UsageError: If `data` is not `bytes`.
        """
        require_bytes("CCEL", data)
        try:
            rows, registers, digests, end = _native.ccel_walk(data)
        except FormatError as error:
            if kind := identify_other_log(data):
                message = f"CCEL: the input is {kind}, not a CCEL"
                raise FormatError(message, offset=error.offset, reason="other_log") from error
            raise
        self = _new(cls)
        source = _new_tuple(CcelSource, (data, rows, end, registers))
        self._set(None, (registers, digests), source)
        return self

    @classmethod
    def from_json(cls, data: bytes | str) -> "EventLog":
        """Parse the JSON array of the dstack guest agent.

        Digests of runtime events may be empty; they are always computed from name and payload.

        Raises:
            FormatError: If the text is not JSON, has over 16 Mi characters or 65,536 events, or an
                event is not valid; the message gives its index.
            UsageError: If `data` is neither `bytes` nor `str`.
        """
        walked = _native.agent_json_walk(data)
        if isinstance(walked, str):  # malformed, or too unusual for the fast path
            return cls.from_wire(agent_json.parse(data))
        rows, registers, digests, regular = walked
        self = _new(cls)  # inlined `_set`: its call takes 1 % of the time
        self._columns = (registers, digests)
        self._source = _new_tuple(AgentJsonSource, (data, rows, digests, regular))
        self._events = self._runtime = self._v2_error = None
        self._warnings = ()
        return self

    @classmethod
    def _from_array(cls, data: bytes | str) -> "EventLog":
        """Parse a JSON array, as text or UTF-8, of agent events or of CEL records."""
        try:
            return cls.from_json(data)
        except FormatError as error:
            if error.reason != "other_log":
                raise
        return cls.from_cel(data)

    @classmethod
    def from_cel(cls, data: bytes | str) -> "EventLog":
        """Parse a Canonical Event Log of a TD in TLV, CBOR or JSON, detected by the first byte.

        CBOR and JSON are an array or a sequence of records (RFC 8742, RFC 7464). Register indexes
        are those of a CCEL: RTMR0 is 1. The data of a runtime event are the preimage of its
        digest; other events have no name. Management records, and EV_NO_ACTION records of index 0,
        are skipped. Gaps in the record numbers become warnings.

        Raises:
            FormatError: If the encoding is malformed; if a record is not for a register of a TD
                (records of IMA, systemd or an NV index); if its number does not increase; or if
                the log exceeds 16 MiB or 65,536 records. The message counts records from 0.
            UsageError: If `data` is neither `bytes` nor `str`.
        """
        events, warnings = cel.read(data)
        self = cls.from_wire(events)
        self._warnings = warnings + self._warnings
        return self

    @classmethod
    def from_wire(cls, wire_events: Iterable[WireEvent]) -> "EventLog":
        """Create a log from events as received in evidence.

        A version 2 event that does not match its preimage is accepted here and fails `check`.

        Raises:
            FormatError: If an event is not valid; the message gives its index.
        """
        wire_events = tuple(wire_events)
        if (made := _make_events(wire_events)) is None:
            return cls._from_any_wire(wire_events)
        events, runtime, registers, digests = made
        self = _new(cls)
        self._set(events, (registers, digests))
        self._regular, self._runtime = True, runtime
        return self

    @classmethod
    def _from_any_wire(cls, wire_events: tuple[WireEvent, ...]) -> "EventLog":
        """Create a log from events that may be invalid, of version 2, or of wrong digest."""
        events: list[Event] = []
        v2_error: str | None = None
        warnings: list[str] = []
        for index, wire in enumerate(wire_events):
            event = event_from_wire(wire, index)
            events.append(event)
            if event.event_type != RUNTIME_EVENT_TYPE:
                continue
            if event.version == 2 and v2_error is None:
                v2_error = _find_v2_error(wire, index)
            elif wire.digest and wire.digest != event.digest:
                warnings.append(
                    f"event {index} {shown(event.name)}: the digest received is not the digest "
                    "of name and payload"
                )
        return cls._of(tuple(events), v2_error=v2_error, warnings=tuple(warnings))

    @property
    def events(self) -> tuple[Event, ...]:
        """All events, in the order of their extension."""
        if self._events is None:
            source = self._source
            if source is None:  # another thread has just decoded them
                return self.events
            # Release the source, which may have 16 MiB. In this order, another thread always finds
            # either the source or its replacement.
            self._warnings, self._regular = source.warnings(), source.regular
            self._events = source.events()
            self._source = None
        return self._events

    @property
    def runtime(self) -> tuple[Event, ...]:
        """The runtime events of RTMR3."""
        if self._runtime is None:
            self._runtime = tuple([event for event in self.events if _is_runtime(event)])
        return self._runtime

    @property
    def warnings(self) -> tuple[str, ...]:
        """Texts about anomalies that do not make the log invalid; usually empty."""
        source = self._source
        return self._warnings if source is None else source.warnings()

    def replay(self) -> Rtmrs:
        """Return RTMR0 to RTMR3, 48 bytes each, after the log's digests have extended zeros."""
        return _native.replay(*self._columns)

    def _packed(self) -> tuple[bytes, bytes]:
        return self._columns

    @staticmethod
    def replay_many(logs: Iterable["EventLog"]) -> list[Rtmrs]:
        """Return the result of `replay` for each log, in the order of the logs."""
        return _native.replay_many([EventLog._packed(log) for log in logs])

    def check(self, quote: RtmrSource, registers: Sequence[int] = (0, 1, 2, 3)) -> None:
        """Compare the replay of the log with the registers of a quote.

        Args:
            quote: An object with the four RTMRs. Its signature is not verified here.
            registers: Numbers of the RTMRs to compare, 0 to 3, at least one.

        Raises:
            ReplayError: If registers differ (`rtmr_mismatch`); the message lists them, and the
                attributes of the error describe the first one.
            VerificationError: If the runtime events are ambiguous; see `check_events`.
            UsageError: If `registers` are not some of 0 to 3, or the quote is of an SGX enclave.
        """
        if not registers or not all(register in (0, 1, 2, 3) for register in registers):
            message = "registers: must be one or more numbers from 0 to 3"
            raise UsageError(message, reason="out_of_range")
        self.check_events()
        replayed, quoted = self.replay(), quote.rtmrs
        differing = [register for register in registers if replayed[register] != quoted[register]]
        if differing:
            texts = [
                f"RTMR{register}: the log replays to {replayed[register].hex()}, "
                f"the quote has {quoted[register].hex()}"
                for register in differing
            ]
            raise ReplayError(
                "; ".join([*texts, *self.warnings]),
                reason="rtmr_mismatch",
                register=differing[0],
                expected=replayed[differing[0]],
                actual=quoted[differing[0]],
            )

    def explained_registers(self) -> tuple[int, ...]:
        """Return the registers that the replay of this log must match: all four, or RTMR3 alone.

        A log shortened for a certificate (`stripped`) contains no events of RTMR0 to RTMR2, except
        those of the ACPI tables. If a log has any other event of these registers, it is complete,
        and its replay must match all four registers.
        """
        for event in self.events:
            if event.register != RUNTIME_REGISTER and not event.is_acpi_data:
                return (0, 1, 2, RUNTIME_REGISTER)
        return (RUNTIME_REGISTER,)

    def check_events(self) -> None:
        """Check the runtime events, as far as that needs no quote.

        Raises:
            VerificationError: If a runtime event is not in RTMR3, if RTMR3 has an event that is not
                a runtime event, if the name of a version 1 event has a colon, or if a version 2
                event lacks its preimage or does not match it (reason `event`).
        """
        if self._v2_error is not None:
            raise VerificationError(self._v2_error, reason="event")
        source = self._source
        if not (self._regular if source is None else source.regular):
            check_runtime_events(self.events)

    def with_runtime(self, events: Iterable[Event]) -> "EventLog":
        """Return a copy of this log with runtime events appended.

        Raises:
            UsageError: If one, whose index the message gives, is not a runtime event of RTMR3.
        """
        more = tuple(events)
        for index, event in enumerate(more):
            _check_event(event, index)
            if not _is_runtime(event):
                message = f"event {index}: must be a runtime event of RTMR3"
                raise UsageError(message, reason="wrong_value")
        registers, digests = _columns(more)
        columns = (self._columns[0] + registers, self._columns[1] + digests)
        return self._with(self.events + more, columns)

    def stripped(self) -> "EventLog":
        """Return the log as in certificates: events of RTMR3 and of the ACPI tables only.

        The digests of version 1 runtime events are empty, because readers compute them. The
        payloads of RTMR3 events that are not runtime events are empty too.
        """
        kept = []
        for event in self.events:
            if _is_runtime(event):
                kept.append(event if event.version == 2 else event._replace(digest=b""))
            elif event.is_acpi_data:
                kept.append(event)
            elif event.register == RUNTIME_REGISTER:
                kept.append(event._replace(payload=b""))
        return self._with(tuple(kept))

    def trimmed(self) -> "EventLog":
        """Return the log as sent with a quote: with all digests, without the firmware's payloads.

        The payloads of runtime events and of the events of the ACPI tables are kept.
        """
        events = []
        for event in self.events:
            register, event_type, digest, name, payload, _ = event
            if payload and event_type != RUNTIME_EVENT_TYPE and not event.is_acpi_data:
                events.append(tuple.__new__(Event, (register, event_type, digest, name, b"", 1)))
            else:
                events.append(event)
        return self._with(tuple(events), self._columns)

    def to_json(self, *, preimages: bool = True) -> str:
        """Return the JSON array of the dstack guest agent, compact.

        Args:
            preimages: Include the preimages of version 2 runtime events, which verifiers require.
        """
        return agent_json.dump(self.events, preimages=preimages)

    def to_cel(self, encoding: str) -> bytes:
        """Return the Canonical Event Log (CEL) of these events; the encoding is deterministic.

        A CEL does not have the names of firmware events (those of the ACPI tables): `from_cel`
        reads these names as "". An empty log in TLV has no bytes; readers reject it.

        Args:
            encoding: `"tlv"`, `"cbor"` or `"json"`.

        Raises:
            UsageError: If the encoding is unknown, a version 1 event's name has a colon, or the log
                would exceed 16 MiB or 65,536 records.
        """
        return cel.write(self.events, encoding)

    def _with(
        self, events: tuple[Event, ...], columns: tuple[bytes, bytes] | None = None
    ) -> "EventLog":
        return self._of(events, columns=columns, v2_error=self._v2_error, warnings=self.warnings)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EventLog):
            return NotImplemented
        return self.events == other.events and self._v2_error == other._v2_error

    def __hash__(self) -> int:
        return hash(self._columns)

    def __repr__(self) -> str:
        return f"<EventLog of {len(self.events)} events>"


def _columns(events: tuple[Event, ...]) -> tuple[bytes, bytes]:
    extending = [event for event in events if event.event_type != NO_ACTION]
    registers = bytes([event.register for event in extending])
    digests = b"".join([event.digest or _digest_of(event) for event in extending])
    return registers, digests


def _digest_of(event: Event) -> bytes:
    return runtime_digest(event.name, event.payload, event.version)


def _is_runtime(event: Event) -> bool:
    return event.event_type == RUNTIME_EVENT_TYPE and event.register == RUNTIME_REGISTER


def _check_event(event: Event, index: int) -> None:
    if not isinstance(event, Event):
        raise wrong_type(f"event {index}", "an Event", event)
    if {type(event.digest), type(event.payload)} != {bytes}:
        raise UsageError(f"event {index}: digest and payload must be bytes", reason="wrong_type")
    wire = WireEvent(
        event.register, event.event_type, event.digest, event.name, event.payload, event.version
    )
    try:
        own = event_from_wire(wire, index).digest
    except FormatError as error:
        raise UsageError(error.message, reason="wrong_value") from error
    except (TypeError, AttributeError) as error:
        message = f"event {index}: register, type and version must be integers, the name text"
        raise UsageError(message, reason="wrong_type") from error
    if event.version != 1 and not event.is_runtime:
        raise UsageError(
            f"event {index}: version is {shown(event.version)}; only runtime events have versions "
            "other than 1",
            reason="not_applicable",
        )
    if event.digest not in (own, b""):
        message = f"event {index} {shown(event.name)}: the digest is not that of name and payload"
        raise UsageError(message, reason="conflict")


def _find_v2_error(wire: WireEvent, index: int) -> str | None:
    try:
        check_v2(wire, index)
    except VerificationError as error:
        return str(error)
    return None


assert DIGEST_SIZE == 48  # as in the native core
