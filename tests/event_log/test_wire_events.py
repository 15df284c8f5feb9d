"""Logs made of events in evidence are the same with the compiled core and without it."""

import gc
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from hypothesis import strategies as st

from attestkit import _native, event_log
from attestkit.errors import AttestKitError
from attestkit.event_log import Event, EventLog, WireEvent
from attestkit.event_log.event import runtime_digest
from attestkit.event_log.event_types import NO_ACTION, RUNTIME_EVENT_TYPE
from tests.attestation.samples import v1_event, v2_event
from tests.runner.cases import every_case
from tests.thorough import thorough
from tests.untyped import untyped, with_false_length

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

BOOT = WireEvent(0, 10, b"\4" * 48, "acpi-rsdp", b"ACPI DATA")
INFORMATIVE = WireEvent(3, NO_ACTION, b"\5" * 48, "", b"note")
NAMED = v1_event("app-id", b"\xde\xad")
STRIPPED = v1_event("é€😀", bytes(300))._replace(digest=b"")
GOOD = (BOOT, INFORMATIVE, BOOT._replace(imr=1, event_type=0xFFFFFFFF), NAMED, STRIPPED)


class Text(str):
    """A subclass of text."""

    __slots__ = ()


# Changes of an event after which it needs Python code: for an error, a warning, or a check.
UNUSUAL = [
    (BOOT, {"imr": 4}),
    (BOOT, {"imr": -1}),
    (BOOT, {"imr": 1 << 70}),
    (BOOT, {"imr": True}),
    (BOOT, {"imr": 3}),
    (BOOT, {"event_type": 1 << 32}),
    (BOOT, {"event_type": -1}),
    (BOOT, {"event_type": RUNTIME_EVENT_TYPE}),
    (BOOT, {"digest": b""}),
    (BOOT, {"digest": bytes(47)}),
    (BOOT, {"digest": with_false_length(b"", 48)}),
    (BOOT, {"version": 2}),
    (BOOT, {"version": 3}),
    (BOOT, {"event": "\ud800"}),
    (BOOT, {"event": Text("a")}),
    (BOOT, {"event_payload": bytearray(b"a")}),
    (NAMED, {"imr": 2}),
    (NAMED, {"digest": bytes(48)}),
    (NAMED, {"digest": bytes(1)}),
    (NAMED, {"event": "other"}),
    (NAMED, {"event": "a:b", "digest": b""}),
    (NAMED, {"event": "\udfff", "digest": b""}),
    (NAMED, {"version": 2}),
    (NAMED, {"version": 1 << 70}),
    (NAMED, {"event_payload": bytes(1 << 24), "digest": b""}),
]


def outcome(wire: Sequence[WireEvent]) -> object:
    """Return all of a log, or of the error for it; and what `check_events` finds."""
    try:
        log = EventLog.from_wire(wire)
    except AttestKitError as error:
        return str(error), error.reason
    kinds = [(type(event), *map(type, event)) for event in log.events]
    checked: object
    try:
        log.check_events()
        checked = log.replay()
    except AttestKitError as error:
        checked = str(error)
    return log.events, kinds, log.runtime, log._packed(), log.warnings, checked


def read(wire: Sequence[WireEvent]) -> object:
    """Return the outcome, which is that of Python."""
    found = outcome(wire)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_log, "_make_events", lambda _: None)
        assert outcome(wire) == found
    return found


@every_case("wire", [(), GOOD, GOOD * 300, (NAMED,), (BOOT,)])
def test_usual_events_are_made_by_compiled_core(wire: tuple[WireEvent, ...]) -> None:
    """Valid events of version 1 need no Python code; digests of runtime events are computed."""
    found = read(wire)
    assert (event_log._make_events(wire) is not None) is (_native.CORE == "compiled")
    assert isinstance(found, tuple)
    digests = [event.digest for event in found[2]]
    assert digests == [runtime_digest(event.name, event.payload) for event in found[2]]


@every_case(("event", "change"), UNUSUAL)
def test_unusual_events_are_left(event: WireEvent, change: dict[str, object]) -> None:
    """Any other event is left to Python code, wherever it is in the log."""
    changed = event._replace(**untyped(change))
    for wire in ((changed,), (*GOOD, changed), (changed, *GOOD)):
        assert event_log._make_events(wire) is None
        read(wire)


@compiled
@pytest.mark.parametrize("wire", [None, [BOOT], (None,), ((0, 1, bytes(48), "", b"", 1),)])
def test_other_objects_are_left(wire: object) -> None:
    """The core makes events of a tuple of tuples with seven fields."""
    assert event_log._make_events(untyped(wire)) is None


def test_version_2_events_are_checked() -> None:
    """They need Python code, which compares their preimage."""
    wire = (*GOOD, v2_event("a:b", b"c"))
    read(wire)
    read((*wire, wire[-1]._replace(preimage="00")))
    assert event_log._make_events(wire) is None


@compiled
def test_number_of_events_is_limited() -> None:
    """More than 65,536 events are left, and payloads of 16 MiB in all."""
    assert event_log._make_events((BOOT,) * 65_536) is not None
    assert event_log._make_events((BOOT,) * 65_537) is None
    big = v1_event("n", bytes((1 << 23) - 7))
    assert event_log._make_events((big,)) is not None
    assert event_log._make_events((big, big)) is not None
    assert event_log._make_events((big, big, NAMED)) is None


PARTS = SimpleNamespace(
    imr=st.sampled_from([0, 1, 3, 3, 4]),
    event_type=st.sampled_from([NO_ACTION, 4, RUNTIME_EVENT_TYPE]),
    digest=st.sampled_from([b"", bytes(48), bytes(47)]),
    event=st.text(max_size=5) | st.just("a:b"),
    payload=st.binary(max_size=150),
)
EVENT = (
    st.builds(
        WireEvent,
        PARTS.imr,
        PARTS.event_type,
        PARTS.digest,
        PARTS.event,
        PARTS.payload,
        st.sampled_from([1, 1, 1, 2]),
    )
    | st.builds(v1_event, PARTS.event, PARTS.payload)
    | st.sampled_from(GOOD)
)


@thorough(st.lists(EVENT, max_size=12).map(tuple), few=300, many=5000)
def test_any_events_are_read_equally(wire: tuple[WireEvent, ...]) -> None:
    """Events, columns, warnings and errors are those of Python."""
    read(wire)


@pytest.mark.slow
@compiled
def test_references_are_balanced() -> None:
    """Neither logs that are made nor those that are left keep a reference."""
    left = (*GOOD, NAMED._replace(digest=bytes(48)))
    fields = [GOOD[0].digest, GOOD[0].event, GOOD[4].event_payload, Event, left[-1]]
    gc.collect()  # other tests' garbage has events too
    before = [sys.getrefcount(field) for field in fields]
    for wire in (GOOD, left):
        for _ in range(10):
            event_log._make_events(wire)
    gc.collect()
    assert [sys.getrefcount(field) for field in fields] == before
