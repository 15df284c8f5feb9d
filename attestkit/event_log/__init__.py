"""Event logs: what a TD's measurement registers were extended with, in order, and their replay.

A log vouches for nothing by itself. Only its digests are held by the registers: `EventLog.check`
compares their replay with a quote. Register numbers are those of the RTMRs, 0 to 3, everywhere.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from attestkit import _native
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
    received,
    runtime_digest,
)
from attestkit.event_log.event_types import NO_ACTION, RUNTIME_EVENT_TYPE
from attestkit.event_log.runtime_events import check_runtime_events, check_v2, parse_runtime_lines
from attestkit.event_log.tcg import CcelSource, TpmEvent, TpmEventLog, other_kind

__all__ = ["Event", "EventLog", "Rtmrs", "TpmEvent", "TpmEventLog", "WireEvent"]

# Bytes, blanks before them left out, that tell one kind of log from the others.
_HEAD = 256

# What objects are made with, without the Python functions around it.
_new = object.__new__
_new_tuple = tuple.__new__

Rtmrs = tuple[bytes, bytes, bytes, bytes]
"""Values of RTMR0 to RTMR3, 48 bytes each."""


class Measured(Protocol):
    """What a log can be checked against: a quote, or anything else that holds RTMRs."""

    @property
    def rtmrs(self) -> Rtmrs:
        """RTMR0 to RTMR3."""
        ...


class EventLog:
    """The log of a TD: what firmware and boot loader measured, then the runtime events."""

    __slots__ = ("_columns", "_events", "_fault", "_runtime", "_source", "_warnings")

    # Register numbers and digests of all that extends, as the native core replays them.
    _columns: tuple[bytes, bytes]
    # None as long as nobody has asked for the events of `_source`.
    _events: tuple[Event, ...] | None
    _source: LogSource | None
    # None as long as nobody has asked.
    _runtime: tuple[Event, ...] | None
    # Why the log must not be believed although it parses.
    _fault: str | None
    _warnings: tuple[str, ...]

    def __init__(self, events: Iterable[Event] = ()) -> None:
        """Make a log of events.

        Args:
            events: In the order they were extended. Digests have 48 bytes; that of a runtime event
                is its own, or empty.

        Raises:
            UsageError: An event cannot be; names its place.
        """
        events = tuple(events)
        for index, event in enumerate(events):
            _check_event(event, index)
        self._columns = _columns(events)
        self._events = events
        self._runtime = None
        self._source = None
        self._fault = None
        self._warnings = ()

    @classmethod
    def _of(
        cls,
        events: tuple[Event, ...],
        columns: tuple[bytes, bytes] | None = None,
        fault: str | None = None,
        warnings: tuple[str, ...] = (),
    ) -> "EventLog":
        """Make a log of events that have been checked."""
        self = cls.__new__(cls)
        self._columns = _columns(events) if columns is None else columns
        self._events = events
        self._runtime = None
        self._source = None
        self._fault = fault
        self._warnings = warnings
        return self

    @classmethod
    def parse(cls, data: bytes | str) -> "EventLog":
        """Read a log in any form a TD's log comes in, which its content tells.

        That is: a CCEL (binary), the guest agent's JSON array, lines of its runtime log, or a
        Canonical Event Log (CEL) in TLV, CBOR or JSON. Other logs, such as a TPM's, are refused by
        their names.

        Raises:
            FormatError: It is none of these, or breaks its format; offset or place are named.
            UsageError: `data` is neither `bytes` nor text.
        """
        if isinstance(data, str):
            head = data.lstrip(" \t\r\n")[:_HEAD].encode(errors="replace")
        elif isinstance(data, bytes):
            head = data.lstrip(b" \t\r\n")[:_HEAD]
        else:
            raise UsageError("an event log is bytes or text")
        if not head:
            raise FormatError("an event log must not be empty", offset=0, reason="empty")
        start = head[:1]
        if cel.encoding_of(head) is not None:
            return cls.from_cel(data)
        if start == b"[":
            return cls._from_array(data)
        if start == b"{":
            lines = data if isinstance(data, bytes) else _utf8(data)
            return cls._of(parse_runtime_lines(lines))
        if isinstance(data, str):
            raise FormatError("neither a JSON array nor lines of JSON", offset=0, reason="json")
        return cls.from_ccel(data)

    @classmethod
    def from_ccel(cls, data: bytes) -> "EventLog":
        """Read a CCEL: the log area that the ACPI table of that name points to, fill included.

        The three events of the ACPI tables get the agent's names for them.

        Raises:
            FormatError: It breaks the format, at `offset`; or it is longer than 16 MiB, or an
                event longer than 1 MiB, or there are more than 65,536 records; or it is another
                kind of log, which is named.
            UsageError: `data` is not `bytes`.
        """
        if not isinstance(data, bytes):
            raise UsageError("a CCEL is bytes")
        try:
            rows, registers, digests, end = _native.ccel_walk(data)
        except FormatError as error:
            if kind := other_kind(data):
                message = f"this is not a CCEL but {kind}"
                raise FormatError(message, offset=error.offset, reason="other_log") from error
            raise
        source = _new_tuple(CcelSource, (data, rows, end, registers))
        return _read(cls, (registers, digests), source)

    @classmethod
    def from_json(cls, data: bytes | str) -> "EventLog":
        """Read the guest agent's JSON array.

        Digests of runtime events may be empty, and are computed from name and payload in any case.

        Raises:
            FormatError: It is not JSON, or an event is not as it should be; names its place.
            UsageError: `data` is neither `bytes` nor text.
        """
        walked = _native.agent_json_walk(data)
        if isinstance(walked, str):  # no log, or one that needs a closer look
            return cls.from_wire(agent_json.parse(data))
        rows, registers, digests, regular = walked
        self = _new(cls)  # and on as in _read, whose call would be a hundredth of it all
        self._columns = (registers, digests)
        self._source = _new_tuple(AgentJsonSource, (data, rows, digests, regular))
        self._events = self._runtime = self._fault = None
        self._warnings = ()
        return self

    @classmethod
    def _from_array(cls, data: bytes | str) -> "EventLog":
        """Read an array of JSON, of which the first members do not tell that it is a CEL."""
        try:
            return cls.from_json(data)
        except FormatError as error:
            if error.reason != "cel":
                raise
        return cls.from_cel(data)

    @classmethod
    def from_cel(cls, data: bytes | str) -> "EventLog":
        """Read a Canonical Event Log of a TD in TLV, CBOR or JSON, which its first byte tells.

        CBOR and JSON are an array of records, or a sequence of them (RFC 8742, RFC 7464). Registers
        are numbered as in a CCEL, RTMR0 is 1; data of runtime events are the preimages of their
        digests, and no other events have a name. Management and informative records of index 0 are
        left out. Record numbers that do not run from 0 in each register, or through the whole log,
        are among the warnings.

        Raises:
            FormatError: It breaks its encoding, at `offset`, or a record is not one of a TD's
                registers, such as IMA's, systemd's or one of an NV index, or its number does not
                grow; names the record, from 0. Or it is longer than 16 MiB, or has more than 65,536
                records.
            UsageError: `data` is neither `bytes` nor text.
        """
        events, warnings = cel.read(data)
        self = cls.from_wire(events)
        self._warnings = warnings + self._warnings
        return self

    @classmethod
    def from_wire(cls, received_events: Iterable[WireEvent]) -> "EventLog":
        """Make a log of events as evidence carries them, in any encoding.

        What is well formed and must not be believed, such as a digest of version 2 that is not its
        preimage's, is kept for `check`.

        Raises:
            FormatError: An event cannot be; names its place.
        """
        events: list[Event] = []
        fault: str | None = None
        warnings: list[str] = []
        for index, wire in enumerate(received_events):
            event = received(wire, index)
            events.append(event)
            if event.event_type != RUNTIME_EVENT_TYPE:
                continue
            if event.version == 2 and fault is None:
                fault = _fault_of(wire, index)
            elif wire.digest and wire.digest != event.digest:
                warnings.append(
                    f"event {index}, {shown(event.name)}, came with a digest not its own"
                )
        return cls._of(tuple(events), fault=fault, warnings=tuple(warnings))

    @property
    def events(self) -> tuple[Event, ...]:
        """All events, in the order they were extended."""
        if self._events is None:
            source = self._source
            if source is None:  # another thread has just made them
                return self.events
            # What they were made from may be 16 MiB: let it go. Readers in other threads find one
            # or the other, and the warnings before that.
            self._warnings = source.warnings()
            self._events = source.events()
            self._source = None
        return self._events

    @property
    def runtime(self) -> tuple[Event, ...]:
        """The runtime events: what the guest measured into RTMR3."""
        if self._runtime is None:
            self._runtime = tuple([event for event in self.events if _is_runtime(event)])
        return self._runtime

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the log without being wrong, for people."""
        source = self._source
        return self._warnings if source is None else source.warnings()

    def replay(self) -> Rtmrs:
        """Fold the digests into the registers and return the four values, 48 bytes each."""
        return _native.replay(*self._columns)

    def _packed(self) -> tuple[bytes, bytes]:
        return self._columns

    @staticmethod
    def replay_many(logs: Iterable["EventLog"]) -> list[Rtmrs]:
        """Replay many logs at once."""
        return _native.replay_many([EventLog._packed(log) for log in logs])

    def check(self, quote: Measured, registers: Sequence[int] = (0, 1, 2, 3)) -> None:
        """Hold the log to the registers of a quote.

        Args:
            quote: Whatever has the four RTMRs. Whether it is genuine is another question.
            registers: Numbers of the RTMRs to compare.

        Raises:
            ReplayError: Names each register that differs and shows both values; the reason is
                rtmr_mismatch.
            VerificationError: The events could mean something other than what was measured; see
                `check_events`.
            UsageError: `registers` are none, or not numbers from 0 to 3.
        """
        if not registers or not all(register in (0, 1, 2, 3) for register in registers):
            raise UsageError("registers to check are numbers from 0 to 3, at least one")
        self.check_events()
        replayed, quoted = self.replay(), quote.rtmrs
        wrong = [
            f"RTMR{register} replays to {replayed[register].hex()}, "
            f"but the quote has {quoted[register].hex()}"
            for register in registers
            if replayed[register] != quoted[register]
        ]
        if wrong:
            raise ReplayError("; ".join([*wrong, *self.warnings]), reason="rtmr_mismatch")

    def explained_registers(self) -> tuple[int, ...]:
        """Return the registers whose values this log can explain: all four, or RTMR3 alone.

        In the form that certificates carry, RTMR 0 to 2 have at most their ACPI tables' events
        left, which replay to nothing a quote has (attestation-format.md, section 5). One other
        event of theirs, and the log is taken for whole: then it must explain them all.
        """
        for event in self.events:
            if event.register != RUNTIME_REGISTER and not event.is_acpi_data:
                return (0, 1, 2, RUNTIME_REGISTER)
        return (RUNTIME_REGISTER,)

    def check_events(self) -> None:
        """Hold the runtime events to their own rules, for which no quote is needed.

        Raises:
            VerificationError: A runtime event outside RTMR3, a colon in a version 1 name, or a
                version 2 event that came without its preimage or with another's.
        """
        if self._fault is not None:
            raise VerificationError(self._fault)
        source = self._source
        if source is None or not source.regular:
            check_runtime_events(self.events)

    def with_runtime(self, events: Iterable[Event]) -> "EventLog":
        """Return this log with runtime events behind it.

        Raises:
            UsageError: One of them is not a runtime event of RTMR3.
        """
        more = tuple(events)
        for index, event in enumerate(more):
            _check_event(event, index)
            if not _is_runtime(event):
                raise UsageError(f"event {index} is not a runtime event of RTMR3")
        registers, digests = _columns(more)
        columns = (self._columns[0] + registers, self._columns[1] + digests)
        return self._with(self.events + more, columns)

    def stripped(self) -> "EventLog":
        """Return the form that certificates carry: events of RTMR3 and of the ACPI tables.

        Digests of version 1 runtime events are left empty, which readers compute; payloads of other
        events of RTMR3 as well.
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
        """Return the form that goes with a quote: firmware's payloads emptied, digests kept.

        Payloads of runtime events and of the ACPI tables' events stay.
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
        """Return the guest agent's JSON array, compact.

        Args:
            preimages: Give runtime events of version 2 their preimage, without which a verifier
                refuses them.
        """
        return agent_json.dump(self.events, preimages=preimages)

    def to_cel(self, encoding: str) -> bytes:
        """Return the Canonical Event Log (CEL) of these events, the same bytes each time.

        Names of firmware's events, which the agent gives to those of the ACPI tables, are not in
        it: `from_cel` reads such events with the name "". An empty log in TLV has no bytes, and no
        reader takes that.

        Args:
            encoding: `"tlv"`, `"cbor"` or `"json"`.

        Raises:
            UsageError: There is no such encoding; a runtime event of version 1 has a colon in its
                name; or the log would be longer than 16 MiB or 65,536 records.
        """
        return cel.write(self.events, encoding)

    def _with(
        self, events: tuple[Event, ...], columns: tuple[bytes, bytes] | None = None
    ) -> "EventLog":
        return self._of(events, columns=columns, fault=self._fault, warnings=self.warnings)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EventLog):
            return NotImplemented
        return self.events == other.events and self._fault == other._fault

    def __hash__(self) -> int:
        return hash(self._columns)

    def __repr__(self) -> str:
        return f"<EventLog of {len(self.events)} events>"


def _read(cls: type[EventLog], columns: tuple[bytes, bytes], source: LogSource) -> EventLog:
    """Make a log of what the native core found in `source`."""
    self = _new(cls)
    self._columns = columns
    self._source = source
    self._events = self._runtime = self._fault = None
    self._warnings = ()
    return self


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
        raise UsageError(f"event {index} is no Event")
    if {type(event.digest), type(event.payload)} != {bytes}:
        raise UsageError(f"event {index}: digest and payload are bytes")
    wire = WireEvent(
        event.register, event.event_type, event.digest, event.name, event.payload, event.version
    )
    try:
        own = received(wire, index).digest
    except (FormatError, TypeError, AttributeError) as error:
        raise UsageError(f"event {index} cannot be: {error}") from error
    if event.version != 1 and not event.is_runtime:
        raise UsageError(f"event {index}: only runtime events have a version")
    if event.digest not in (own, b""):
        raise UsageError(f"event {index}, {shown(event.name)}, has a digest that is not its own")


def _fault_of(wire: WireEvent, index: int) -> str | None:
    try:
        check_v2(wire, index)
    except VerificationError as error:
        return str(error)
    return None


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise FormatError("the text has lone surrogates", reason="json") from error


assert DIGEST_SIZE == 48  # as the native core has it
