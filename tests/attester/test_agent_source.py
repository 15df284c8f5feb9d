"""Evidence of somebody else's agent is held against what was asked, and against itself."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.wire.evidence_parts import Evidence, NitroTpm, SevSnp, Stack
from attestkit.attester import Attester
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    ReplayError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log import EventLog
from attestkit.event_log.runtime_events import RESERVED_NAMES
from attestkit.quote import Quote
from tests.tees import CHIP, ChangeAnswer, FakeAgent

DATA = b"\1" * 64


@pytest.fixture
def agent() -> FakeAgent:
    """An agent in front of a simulated TD."""
    return FakeAgent()


@pytest.fixture
def tee(agent: FakeAgent) -> Iterator[Attester]:
    """An Attester on it."""
    with Attester(agent) as tee:
        yield tee


def test_the_first_journey(agent: FakeAgent, tee: Attester) -> None:
    """Quote, log, evidence, event, registers, keys and app, all of them the agent's."""
    quote = tee.get_quote(b"nonce")
    assert quote.report_data == b"nonce".ljust(64, b"\0")
    tee.event_log().check(quote)
    event = tee.emit_event("model-loaded", b"weights")
    assert tee.event_log().runtime[-1] == event == agent.event("model-loaded", b"weights")
    quote, log = tee.quote_and_log(DATA)
    log.check(quote)
    assert quote.rtmrs == tee.registers()
    evidence = Attestation.from_bytes(tee.attest(b"nonce").to_bytes())
    assert evidence.runtime_events[-1] == event
    assert evidence.config == tee.vm_config == agent.td.vm_config
    assert tee.app_compose.raw == agent.td.app_compose.raw
    assert tee.info().app_id == tee.app_compose.default_app_id
    assert tee.keys.derive("a").key == agent.keys.derive("a").key
    assert tee.has_quotes
    assert tee.host is None


def test_what_cannot_change_is_asked_once(agent: FakeAgent, tee: Attester) -> None:
    """The app's description and the machine's configuration."""
    assert tee.app_compose is tee.app_compose
    assert tee.vm_config
    asked = agent.asked
    assert tee.vm_config
    assert agent.asked == asked


def changed(**fields: str) -> ChangeAnswer:
    """Return a change of some fields of an answer."""
    return lambda answer: {**answer, **fields}


def other_quote(answer: dict[str, str]) -> dict[str, str]:
    """Put a good quote over other data into an answer."""
    quote = FakeAgent().td.get_quote(b"\2" * 64)
    return {**answer, "quote": quote.hex(), "report_data": ""}


@pytest.mark.parametrize(
    "change",
    [
        changed(quote=""),
        changed(quote="00"),
        changed(quote="xyz"),
        changed(event_log=""),
        changed(event_log="{}"),
        changed(event_log="[{}]"),
        changed(report_data="ff"),
        changed(attestation="05"),
        lambda answer: {**answer, "quote": answer["quote"][:-2]},
        other_quote,
    ],
)
def test_a_wrong_answer_is_the_platforms_fault(
    agent: FakeAgent, tee: Attester, change: ChangeAnswer
) -> None:
    """It never leaves, and it is no FormatError: the caller's bytes were right."""
    agent.change = change
    calls: list[Callable[[], object]] = [
        lambda: tee.attest(DATA),
        lambda: tee.get_quote(DATA),
        lambda: tee.quote_and_log(DATA),
        lambda: tee.emit_event("a", b""),
        tee.registers,
    ]
    for call in calls:
        with pytest.raises(BackendError) as caught:
            call()
        assert type(caught.value) is BackendError


def _with_log_until(end: int, answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, "event_log": json.dumps(json.loads(answer["event_log"])[:end])}


def test_a_log_that_does_not_explain_the_quote_does_not_leave(
    agent: FakeAgent, tee: Attester
) -> None:
    """An event that is missing, and one that is too many."""
    for cut in (-1, 1):
        agent.change = partial(_with_log_until, cut)
        with pytest.raises(ReplayError, match="RTMR"):
            tee.attest(DATA)


# -- events ------------------------------------------------------------------------------------


def test_an_event_that_was_thrown_away_is_found_out(agent: FakeAgent, tee: Attester) -> None:
    """Some agents say yes to an event and forget it, also to one that was there before."""
    tee.emit_event("a", b"1")
    agent.deaf = True
    for name, payload in (("a", b"1"), ("b", b"")):
        with pytest.raises(BackendError, match="its log does not have it"):
            tee.emit_event(name, payload)
    agent.deaf = False
    tee.emit_event("a", b"1")
    assert [event.name for event in tee.event_log().runtime[-2:]] == ["a", "a"]


def test_an_event_whose_fate_is_not_known_is_not_worth_another_try(
    agent: FakeAgent, tee: Attester
) -> None:
    """The agent took it; if it is busy afterwards the error must not invite to emit it again."""

    def busy_once_it_is_there(answer: dict[str, str]) -> dict[str, str]:
        if agent.td.open_journal().events()[-1].name == "a":
            raise BackendBusyError("no answer in time")
        return answer

    agent.change = busy_once_it_is_there
    with pytest.raises(BackendError, match=r"took the event 'a'.*before emitting") as caught:
        tee.emit_event("a", b"1")
    assert type(caught.value) is BackendError


@pytest.mark.parametrize("name", ["", *sorted(RESERVED_NAMES), "a:b"])
def test_names_that_cannot_be_are_refused(agent: FakeAgent, tee: Attester, name: str) -> None:
    """Before the agent is asked to emit."""
    before = agent.td.read_rtmr(3)
    with pytest.raises(UsageError):
        tee.emit_event(name, b"")
    assert agent.td.read_rtmr(3) == before


# -- other platforms behind the agent ----------------------------------------------------------


def whole(evidence: Evidence) -> str:
    """Return evidence as it is in an answer."""
    return Attestation(evidence).to_bytes().hex()


def snp(report_data: bytes = DATA, document: str = "", hashed: str | None = None) -> Evidence:
    """Return an SNP guest's evidence."""
    hash_of_document = host_data(document if hashed is None else hashed)
    report = CHIP.report(report_data, host_data=hash_of_document)
    return Evidence(SevSnp(report, (), document), Stack(DATA, (), ""))


def test_an_agent_on_snp(agent: FakeAgent, tee: Attester) -> None:
    """It has evidence and no quotes."""
    agent.change = lambda answer: {**answer, "quote": "", "attestation": whole(snp())}
    assert tee.attest(DATA).platform == "dstack-amd-sev-snp"
    for call in (lambda: tee.get_quote(DATA), lambda: tee.quote_and_log(DATA)):
        with pytest.raises(UnsupportedError, match=r"dstack-amd-sev-snp.*attest\(\)"):
            call()


def test_an_agent_on_snp_is_held_to_it(agent: FakeAgent, tee: Attester) -> None:
    """To the report data that was signed, and to the document of the launch."""
    agent.change = lambda answer: {**answer, "attestation": whole(snp(bytes(64)))}
    with pytest.raises(BackendError, match="other report data"):
        tee.attest(DATA)
    agent.change = lambda answer: {**answer, "attestation": whole(snp(DATA, "{}", "other"))}
    with pytest.raises(ReplayError, match="HOST_DATA"):
        tee.attest(DATA)
    short = Evidence(SevSnp(b"short", (), ""), Stack(DATA, (), ""))
    agent.change = lambda answer: {**answer, "attestation": whole(short)}
    with pytest.raises(BackendError, match="5 bytes"):
        tee.attest(DATA)


def test_an_agent_on_snp_has_no_registers(agent: FakeAgent, tee: Attester) -> None:
    """And so no events."""
    zeros = Evidence(snp(bytes(64)).platform, Stack(bytes(64), (), ""))
    agent.change = lambda answer: {**answer, "attestation": whole(zeros)}
    for call in (tee.registers, lambda: tee.emit_event("a", b"")):
        with pytest.raises(UnsupportedError, match="registers"):
            call()


def test_a_document_that_cannot_be_read_does_not_leave(agent: FakeAgent, tee: Attester) -> None:
    """Evidence of the other platforms is at least well formed."""
    evidence = Evidence(NitroTpm(b"\x84"), Stack(DATA, (), ""))
    agent.change = lambda answer: {**answer, "attestation": whole(evidence)}
    with pytest.raises(BackendError, match="malformed"):
        tee.attest(DATA)


# -- the app -----------------------------------------------------------------------------------


def test_an_app_that_is_hidden_is_not_known(agent: FakeAgent, tee: Attester) -> None:
    """The agent's word comes through; what it is measured by is its guest's."""
    agent.hidden = True
    with pytest.raises(UnsupportedError, match="hides"):
        _ = tee.app_compose
    with pytest.raises(UnsupportedError, match="when it boots"):
        tee.measure_app()


def test_a_log_that_is_empty_is_empty(
    agent: FakeAgent, tee: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an agent off TDX has it."""
    monkeypatch.setattr(agent, "_log", lambda: "")
    assert tee.event_log() == EventLog()
    monkeypatch.setattr(agent, "_log", lambda: "[{}]")
    with pytest.raises(BackendError, match="malformed"):
        tee.event_log()


def test_closed_is_closed(agent: FakeAgent) -> None:
    """Nothing can be asked afterwards."""
    tee = Attester(agent)
    tee.close()
    calls: list[Callable[[], object]] = [
        lambda: tee.attest(b""),
        lambda: tee.emit_event("a", b""),
        lambda: tee.app_compose,
        lambda: tee.vm_config,
        lambda: tee.keys,
        tee.event_log,
    ]
    for call in calls:
        with pytest.raises(UsageError, match="closed"):
            call()


def test_quotes_are_the_agents(agent: FakeAgent, tee: Attester) -> None:
    """Byte for byte, signature and all."""
    assert tee.get_quote(DATA) == Quote.parse(agent.td.get_quote(DATA))
