"""Evidence of a guest agent: checked against the request and for consistency."""

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
from tests.machines.tees import CHIP, ChangeAnswer, FakeAgent
from tests.raising import raises

DATA = b"\1" * 64


@pytest.fixture
def agent() -> FakeAgent:
    """Return an agent in front of a simulated TD."""
    return FakeAgent()


@pytest.fixture
def tee(agent: FakeAgent) -> Iterator[Attester]:
    """Return an Attester on the agent."""
    with Attester(agent) as tee:
        yield tee


def test_attester_on_agent_supports_the_documented_workflow(
    agent: FakeAgent, tee: Attester
) -> None:
    """Quote, log, evidence, event, registers, keys and app are the agent's."""
    quote = tee.get_quote(b"nonce")
    assert quote.report_data == b"nonce".ljust(64, b"\0")
    tee.event_log().check(quote)
    event = tee.emit_event("model-loaded", b"weights")
    assert tee.event_log().runtime[-1] == event == agent.event("model-loaded", b"weights")
    quote, log = tee.evidence_source.quote_and_log(DATA)
    log.check(quote)
    assert quote.rtmrs == tee.registers()
    evidence = Attestation.from_bytes(tee.attest(report_data=b"nonce", pad=True).to_bytes())
    assert evidence.runtime_events[-1] == event
    assert evidence.config == tee.vm_config == agent.td.vm_config
    assert tee.app_compose.raw == agent.td.app_compose.raw
    assert tee.app_info.app_id == tee.app_compose.default_app_id
    assert tee.keys.derive_compat("a").key == agent.keys.derive_compat("a").key
    assert tee.has_quotes
    assert tee.host is None


def test_app_and_configuration_are_requested_once(agent: FakeAgent, tee: Attester) -> None:
    """They cannot change."""
    assert tee.app_compose is tee.app_compose
    assert tee.vm_config
    count = agent.asked
    assert tee.vm_config
    assert agent.asked == count


def change_fields(**fields: str) -> ChangeAnswer:
    """Return a change of some fields of a response."""
    return lambda response: {**response, **fields}


def replace_quote(response: dict[str, str]) -> dict[str, str]:
    """Put a valid quote over other data into a response."""
    quote = FakeAgent().td.get_quote(b"\2" * 64)
    return {**response, "quote": quote.hex(), "report_data": ""}


@pytest.mark.parametrize(
    "change",
    [
        change_fields(quote=""),
        change_fields(quote="00"),
        change_fields(quote="xyz"),
        change_fields(event_log=""),
        change_fields(event_log="{}"),
        change_fields(event_log="[{}]"),
        change_fields(report_data="ff"),
        change_fields(attestation="05"),
        lambda response: {**response, "quote": response["quote"][:-2]},
        replace_quote,
    ],
)
def test_malformed_agent_response_is_a_backend_error(
    agent: FakeAgent, tee: Attester, change: ChangeAnswer
) -> None:
    """It is not a FormatError, since the caller's input was valid."""
    agent.change = change
    calls: list[Callable[[], object]] = [
        lambda: tee.attest(report_data=DATA, pad=True),
        lambda: tee.get_quote(DATA),
        lambda: tee.evidence_source.quote_and_log(DATA),
        lambda: tee.emit_event("a", b""),
        tee.registers,
    ]
    for call in calls:
        with raises(BackendError, "malformed_response", "wrong_report_data"):
            call()


def _with_log_until(end: int, response: dict[str, Any]) -> dict[str, Any]:
    return {**response, "event_log": json.dumps(json.loads(response["event_log"])[:end])}


def test_agent_log_must_explain_the_quote(agent: FakeAgent, tee: Attester) -> None:
    """An event is missing, or there is one too many."""
    for cut in (-1, 1):
        agent.change = partial(_with_log_until, cut)
        with raises(ReplayError, "rtmr_mismatch"):
            tee.attest(report_data=DATA, pad=True)


# -- events ------------------------------------------------------------------------------------


def test_event_ignored_by_the_agent_is_detected(agent: FakeAgent, tee: Attester) -> None:
    """Some agents acknowledge an event without an extend, even if the log has an equal one."""
    tee.emit_event("a", b"1")
    agent.deaf = True
    for name, payload in (("a", b"1"), ("b", b"")):
        with raises(BackendError, "register_unchanged"):
            tee.emit_event(name, payload)
    agent.deaf = False
    tee.emit_event("a", b"1")
    assert [event.name for event in tee.event_log().runtime[-2:]] == ["a", "a"]


def test_event_with_unknown_outcome_is_not_retryable(agent: FakeAgent, tee: Attester) -> None:
    """The agent accepted the event, so a busy error must not invite a retry."""

    def busy_once_it_is_there(response: dict[str, str]) -> dict[str, str]:
        if agent.td.open_journal().events()[-1].name == "a":
            raise BackendBusyError("no answer in time", reason="request_in_flight")
        return response

    agent.change = busy_once_it_is_there
    with raises(BackendError, "outcome_unknown"):
        tee.emit_event("a", b"1")


@pytest.mark.parametrize("name", ["", *sorted(RESERVED_NAMES), "a:b"])
def test_emit_event_invalid_name_does_not_reach_the_agent(
    agent: FakeAgent, tee: Attester, name: str
) -> None:
    """The name is checked first."""
    before = agent.td.read_rtmr(3)
    with pytest.raises(UsageError):
        tee.emit_event(name, b"")
    assert agent.td.read_rtmr(3) == before


# -- other platforms ---------------------------------------------------------------------------


def encode_evidence(evidence: Evidence) -> str:
    """Return evidence as the hex text of a response."""
    return Attestation(evidence).to_bytes().hex()


def make_snp_evidence(
    report_data: bytes = DATA, document: str = "", hashed: str | None = None
) -> Evidence:
    """Return evidence of an SNP guest."""
    hash_of_document = host_data(document if hashed is None else hashed)
    report = CHIP.report(report_data, host_data=hash_of_document)
    return Evidence(SevSnp(report, (), document), Stack(DATA, (), ""))


def test_agent_on_snp_has_evidence_but_no_quotes(agent: FakeAgent, tee: Attester) -> None:
    """Quotes are unsupported."""
    agent.change = lambda response: {
        **response,
        "quote": "",
        "attestation": encode_evidence(make_snp_evidence()),
    }
    assert tee.attest(report_data=DATA, pad=True).platform == "dstack-amd-sev-snp"
    for call in (lambda: tee.get_quote(DATA), lambda: tee.evidence_source.quote_and_log(DATA)):
        with raises(UnsupportedError, "no_quote"):
            call()


def test_agent_on_snp_evidence_is_checked(agent: FakeAgent, tee: Attester) -> None:
    """Report data and launch document are compared."""
    agent.change = lambda response: {
        **response,
        "attestation": encode_evidence(make_snp_evidence(bytes(64))),
    }
    with raises(BackendError, "wrong_report_data"):
        tee.attest(report_data=DATA, pad=True)
    agent.change = lambda response: {
        **response,
        "attestation": encode_evidence(make_snp_evidence(DATA, "{}", "other")),
    }
    with raises(ReplayError, "host_data_mismatch"):
        tee.attest(report_data=DATA, pad=True)
    short = Evidence(SevSnp(b"short", (), ""), Stack(DATA, (), ""))
    agent.change = lambda response: {**response, "attestation": encode_evidence(short)}
    with raises(BackendError, "truncated"):
        tee.attest(report_data=DATA, pad=True)


def test_agent_on_snp_has_no_registers(agent: FakeAgent, tee: Attester) -> None:
    """Events are unsupported, too."""
    zeros = Evidence(make_snp_evidence(bytes(64)).platform, Stack(bytes(64), (), ""))
    agent.change = lambda response: {**response, "attestation": encode_evidence(zeros)}
    for call in (tee.registers, lambda: tee.emit_event("a", b"")):
        with raises(UnsupportedError, "no_registers"):
            call()


def test_agent_malformed_document_is_a_backend_error(agent: FakeAgent, tee: Attester) -> None:
    """Evidence of other platforms is checked for its format only."""
    evidence = Evidence(NitroTpm(b"\x84"), Stack(DATA, (), ""))
    agent.change = lambda response: {**response, "attestation": encode_evidence(evidence)}
    with raises(BackendError, "malformed_response"):
        tee.attest(report_data=DATA, pad=True)


# -- the app -----------------------------------------------------------------------------------


def test_agent_hidden_app_is_unsupported(agent: FakeAgent, tee: Attester) -> None:
    """The agent's error is raised; measure_app is unsupported by agents."""
    agent.hidden = True
    with raises(UnsupportedError, "no_app"):
        _ = tee.app_compose
    with raises(UnsupportedError, "feature"):
        tee.measure_app()


def test_agent_empty_event_log_is_accepted(
    agent: FakeAgent, tee: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents outside of TDX have no log."""
    monkeypatch.setattr(agent, "_log", lambda: "")
    assert tee.event_log() == EventLog()
    monkeypatch.setattr(agent, "_log", lambda: "[{}]")
    with raises(BackendError, "malformed_response"):
        tee.event_log()
