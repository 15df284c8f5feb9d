"""A log that grows is held to the registers event by event, and no less than a whole one."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation import Attestation
from attestkit.attestation.wire import event_log
from attestkit.attestation.wire.event_log import WireLog
from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.errors import AttestKitError, JournalError, ReplayError, VerificationError
from attestkit.event_log import Event, EventLog, WireEvent
from attestkit.event_log.runtime_events import runtime_event
from attestkit.quote import Quote

ZEROS = bytes(64)
STEPS = st.sampled_from(["emit", "emit", "quote", "extend 2", "extend 3", "reset"])


@pytest.fixture
def tee() -> Iterator[Attester]:
    """A simulated TD that has given a quote already."""
    with Attester(Simulator(seed=bytes(32))) as tee:
        tee.quote_and_log(ZEROS)
        yield tee


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[EventLog]:
    """Collect the logs that are checked as a whole."""
    checked: list[EventLog] = []
    check = EventLog.check

    def counted(log: EventLog, quote: Quote) -> None:
        checked.append(log)
        check(log, quote)

    monkeypatch.setattr(EventLog, "check", counted)
    return checked


def test_what_agreed_is_not_replayed_again(tee: Attester, checks: list[EventLog]) -> None:
    """After one more event, or a hundred, nothing is looked at but those."""
    for count in (1, 100):
        for number in range(count):
            tee.emit_event(f"e{number}", b"payload")
        quote, log = tee.quote_and_log(ZEROS)
        assert checks == []
        assert log.replay() == quote.rtmrs


@pytest.mark.parametrize("register", [2, 3])
def test_a_register_that_moved_alone_is_found(
    tee: Attester, checks: list[EventLog], register: int
) -> None:
    """With and without an event meanwhile, each time that it is asked for."""
    simulator = tee.backend
    assert isinstance(simulator, Simulator)
    tee.emit_event("before", b"")
    simulator.extend_rtmr(register, bytes(48))
    for _ in range(2):
        with pytest.raises(ReplayError, match=f"RTMR{register} replays to") as caught:
            tee.quote_and_log(ZEROS)
        assert caught.value.reason == "rtmr_mismatch"
        remedy = "what may have happened, and only a reboot starts both anew"
        assert str(caught.value).endswith(remedy if register == 3 else "what may have happened")
    assert len(checks) == 2


def test_events_that_were_not_extended_are_found(
    tee: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the registers are those that agreed."""
    assert isinstance(tee.backend, Simulator)
    journal = tee.backend.open_journal()
    events, more = journal.events(), runtime_event("more", b"")
    for forged in ((*events, more), (*events[:-1], more), (*events[1:], more), events[:-1]):
        monkeypatch.setattr(journal, "events", partial(tuple, forged))
        for _ in range(2):
            with pytest.raises(ReplayError, match="RTMR3 replays to"):
                tee.quote_and_log(ZEROS)


def test_an_event_that_must_not_be_believed_is_found(
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
    with pytest.raises(VerificationError, match=f"event {at}, 'a:b', has a colon"):
        tee.quote_and_log(ZEROS)


@settings(max_examples=40, database=None, deadline=None)
@given(st.lists(STEPS, max_size=12))
def test_the_verdict_is_that_of_the_whole_log(steps: list[str]) -> None:
    """Whatever happens in whatever order."""
    simulator = Simulator(seed=bytes(32))
    with Attester(simulator) as tee:
        for step in [*steps, "quote"]:
            if step == "emit":
                with suppress(JournalError):  # the register was extended by somebody else
                    tee.emit_event("name", b"payload")
            elif step.startswith("extend"):
                simulator.extend_rtmr(int(step[-1]), bytes(48))
            elif step == "reset":
                simulator.reset()
            else:
                quote = tee.get_quote(ZEROS)
                agrees = tee.event_log().replay() == quote.rtmrs
                try:
                    tee.quote_and_log(ZEROS)
                except AttestKitError:
                    assert not agrees
                else:
                    assert agrees


@pytest.mark.parametrize("version", [1, 2])
def test_evidence_of_a_log_that_grew(version: int) -> None:
    """It is the evidence that is made without knowing the log's start."""
    simulator = Simulator(seed=bytes(32))
    quote = Quote.parse(simulator.get_quote(ZEROS))
    log, known = EventLog.parse(simulator.read_event_log()), WireLog()
    for events in ([runtime_event("a", b"", version)], [], [runtime_event("b", b"\0", version)]):
        log = log.with_runtime(events)
        known = known.of(log)
        made, plain = (Attestation.for_tdx(quote, log, known=start) for start in (known, WireLog()))
        assert made == plain
        assert made.to_bytes() == plain.to_bytes()
        assert made.runtime_events == log.runtime
    other = EventLog(log.events[1:])
    assert known.of(other) == WireLog().of(other)


def test_each_event_is_put_on_the_wire_once(tee: Attester, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one more event one is made, after none none."""
    tee.evidence(ZEROS)
    made: list[Event] = []
    wire_event = event_log.wire_event

    def counted(event: Event) -> WireEvent:
        made.append(event)
        return wire_event(event)

    monkeypatch.setattr(event_log, "wire_event", counted)
    event = tee.emit_event("more", b"")
    for _ in range(2):
        assert tee.evidence(ZEROS).event_log.events[-1] == event
    assert made == [event]
