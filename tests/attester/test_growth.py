"""Incremental log checks: new events only, with the result of a complete check."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation import Attestation
from attestkit.attestation import tdx as event_log
from attestkit.attestation.tdx import WireLog
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.errors import AttestKitError, JournalError, ReplayError, VerificationError
from attestkit.event_log import Event, EventLog, WireEvent
from attestkit.event_log.runtime_events import runtime_event
from attestkit.quote import Quote
from tests.raising import raises

ZEROS = bytes(64)
STEPS = st.sampled_from(["emit", "emit", "quote", "extend 2", "extend 3", "reset"])


@pytest.fixture
def tee() -> Iterator[Attester]:
    """Return an attester on a simulated TD that has made a quote."""
    with Attester(Simulator(seed=bytes(32))) as tee:
        tee.evidence_source.quote_and_log(ZEROS)
        yield tee


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[EventLog]:
    """Collect the logs that are checked completely."""
    checked: list[EventLog] = []
    check = EventLog.check

    def counted(log: EventLog, quote: Quote) -> None:
        checked.append(log)
        check(log, quote)

    monkeypatch.setattr(EventLog, "check", counted)
    return checked


def test_checked_events_are_not_replayed_again(tee: Attester, checks: list[EventLog]) -> None:
    """Only new events are replayed."""
    for count in (1, 100):
        for number in range(count):
            tee.emit_event(f"e{number}", b"payload")
        quote, log = tee.evidence_source.quote_and_log(ZEROS)
        assert checks == []
        assert log.replay() == quote.rtmrs


@pytest.mark.parametrize("register", [2, 3])
def test_register_extended_without_event_is_detected(
    tee: Attester, checks: list[EventLog], register: int
) -> None:
    """With and without a new event, in each request."""
    simulator = tee.backend
    assert isinstance(simulator, Simulator)
    tee.emit_event("before", b"")
    simulator.extend_rtmr(register, bytes(48))
    for _ in range(2):
        with raises(ReplayError, "rtmr_mismatch", part=f"RTMR{register}") as caught:
            tee.evidence_source.quote_and_log(ZEROS)
        assert "attestkit doctor" in str(caught.value)
        assert ("reboot" in str(caught.value)) == (register == 3)
    assert len(checks) == 2


def test_event_without_extend_is_detected(tee: Attester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The registers are unchanged since the last check."""
    assert isinstance(tee.backend, Simulator)
    journal = tee.backend.open_journal()
    events, more = journal.events(), runtime_event("more", b"")
    for forged in ((*events, more), (*events[:-1], more), (*events[1:], more), events[:-1]):
        monkeypatch.setattr(journal, "events", partial(tuple, forged))
        for _ in range(2):
            with raises(ReplayError, "rtmr_mismatch", part="RTMR3"):
                tee.evidence_source.quote_and_log(ZEROS)


def test_event_with_ambiguous_digest_is_detected(
    tee: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest is in the register, and could be another event's."""
    digest = runtime_event("a", b"b:c").digest
    event = Event(3, 0x08000001, digest, "a:b", b"c")
    assert isinstance(tee.backend, Simulator)
    journal = tee.backend.open_journal()
    at = len(tee.event_log().events)
    more = (*journal.events(), event)
    monkeypatch.setattr(journal, "events", lambda: more)
    tee.backend.extend_rtmr(3, digest)
    with raises(VerificationError, "event", part=f"event {at} 'a:b'"):
        tee.evidence_source.quote_and_log(ZEROS)


@settings(max_examples=40, database=None, deadline=None)
@given(st.lists(STEPS, max_size=12))
def test_incremental_check_equals_complete_check(steps: list[str]) -> None:
    """Steps in any order."""
    simulator = Simulator(seed=bytes(32))
    with Attester(simulator) as tee:
        for step in [*steps, "quote"]:
            if step == "emit":
                with suppress(JournalError):  # the register has a foreign extend
                    tee.emit_event("name", b"payload")
            elif step.startswith("extend"):
                simulator.extend_rtmr(int(step[-1]), bytes(48))
            elif step == "reset":
                simulator.reset()
            else:
                quote = tee.get_quote(ZEROS)
                agrees = tee.event_log().replay() == quote.rtmrs
                try:
                    tee.evidence_source.quote_and_log(ZEROS)
                except AttestKitError:
                    assert not agrees
                else:
                    assert agrees


@pytest.mark.parametrize("version", [1, 2])
def test_incremental_evidence_equals_complete_evidence(version: int) -> None:
    """The evidence does not depend on a cached start of the log."""
    simulator = Simulator(seed=bytes(32))
    quote = Quote.parse(simulator.get_quote(ZEROS))
    log, known = EventLog.parse(simulator.read_event_log()), WireLog()
    for events in ([runtime_event("a", b"", version)], [], [runtime_event("b", b"\0", version)]):
        log = log.with_runtime(events)
        known = known.extend_to(log)
        made, plain = (Attestation.for_tdx(quote, log, known=start) for start in (known, WireLog()))
        assert made == plain
        assert made.to_bytes() == plain.to_bytes()
        assert made.runtime_events == log.runtime
    other = EventLog(log.events[1:])
    assert known.extend_to(other) == WireLog().extend_to(other)


def test_each_event_is_encoded_once(tee: Attester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encodings of earlier events are reused."""
    tee.attest(report_data=ZEROS)
    made: list[Event] = []
    to_wire_event = event_log.to_wire_event

    def counted(event: Event) -> WireEvent:
        made.append(event)
        return to_wire_event(event)

    monkeypatch.setattr(event_log, "to_wire_event", counted)
    event = tee.emit_event("more", b"")
    for _ in range(2):
        assert tee.attest(report_data=ZEROS).event_log.events[-1] == event
    assert made == [event]
