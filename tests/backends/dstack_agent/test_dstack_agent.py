"""An agent is a TEE by its name; by itself only if hardware signs its quotes."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import attestkit
from attestkit import Attestation, EventLog, LocalKeys, Quote, backends
from attestkit.backends.base import AppHost, Backend, GuestAgent, RegisterExtender, SnpReporter
from attestkit.backends.dstack_agent import DstackAgent
from attestkit.backends.linux import paths
from attestkit.backends.simulator import Simulator
from attestkit.errors import (
    AttestKitError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
)
from attestkit.keys import AppKeys
from attestkit.testing import BackendContract
from tests.backends.dstack_agent.scripted_agent import (
    Script,
    ScriptedAgent,
    response,
    scripted_agent,
    usual_agent,
)
from tests.serve.server import SEED, Server, running_server
from tests.untyped import untyped
from tests.vectors import data, needs_shared

VARIABLE = "DSTACK_SIMULATOR_ENDPOINT"
ASKED = bytes(range(64))
USUAL = paths.AGENT_SOCKETS  # which the tests hide


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Our own server on a simulated TD."""
    with running_server() as found:
        yield found


@pytest.fixture(autouse=True)
def _no_agent_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    monkeypatch.setattr(paths, "AGENT_SOCKETS", ())


class TestOurServer(BackendContract):
    """The contract, with our own server as the agent."""

    @pytest.fixture(autouse=True)
    def _named(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(VARIABLE, server.dstack)

    def make_backend(self) -> Backend:
        """Return a client of the server."""
        return DstackAgent()


# -- what it says ----------------------------------------------------------------------------------


def test_it_has_the_abilities_of_an_agent(server: Server) -> None:
    """It keeps log, register and keys to itself, so it is neither of the other kinds."""
    backend = DstackAgent(endpoint=server.dstack)
    assert isinstance(backend, Backend)
    assert isinstance(backend, GuestAgent)
    for other in (RegisterExtender, SnpReporter, AppHost):
        assert not isinstance(backend, other)
    assert backend.blocking
    assert repr(backend) == f"DstackAgent(endpoint={server.dstack!r})"


def test_evidence_and_log_are_the_agents(server: Server) -> None:
    """An answer is complete evidence, and the log has what was emitted."""
    backend = DstackAgent(endpoint=server.dstack)
    before = EventLog.parse(backend.read_event_log())
    backend.emit_event("h\u00e9llo", b"\0\xff")
    log = EventLog.parse(backend.read_event_log())
    assert len(log.events) == len(before.events) + 1
    assert (log.events[-1].name, log.events[-1].payload) == ("h\u00e9llo", b"\0\xff")
    quote = Quote.parse(backend.get_quote(ASKED))
    assert quote.report_data == ASKED
    log.check(quote)
    evidence = Attestation.from_agent_response(backend.get_quote_response(ASKED))
    assert evidence.report_data == ASKED
    assert evidence.event_log.events == log.events
    assert evidence.config == Simulator().vm_config


def test_the_app_is_the_agents(server: Server) -> None:
    """Its description byte for byte, and its keys."""
    backend = DstackAgent(endpoint=server.dstack)
    twin = Simulator(seed=bytes.fromhex(SEED))
    assert backend.read_app_compose() == twin.app_compose.raw
    local = LocalKeys(AppKeys.from_seed(bytes.fromhex(SEED)))
    assert backend.keys.derive("a", "b") == local.derive("a", "b")
    assert backend.keys.sign(b"c", "ed25519") == local.sign(b"c", "ed25519")


def test_a_url_does_as_well() -> None:
    """Whatever starts with http is one."""
    with (
        running_server("--dev-http", "127.0.0.1:0") as server,
        attestkit.Attester(DstackAgent(endpoint=server.dev_url)) as tee,
    ):
        assert tee.simulated
        assert tee.attest(b"nonce").report_data == b"nonce".ljust(64, b"\0")


def test_closed_is_closed(server: Server) -> None:
    """Also for the keys."""
    backend = DstackAgent(endpoint=server.dstack)
    backend.close()
    backend.close()
    for call in (
        lambda: backend.get_quote(ASKED),
        backend.read_event_log,
        lambda: backend.emit_event("a", b""),
        lambda: backend.keys.derive("a"),
    ):
        with pytest.raises(UsageError, match="closed"):
            call()


def test_what_cannot_be_asked_is_not(server: Server) -> None:
    """The wrong types, and names that the agent refuses, in its words."""
    backend = DstackAgent(endpoint=server.dstack)
    count = len(EventLog.parse(backend.read_event_log()).events)
    for name, payload, text in (
        ("\ud800", b"", "surrogate"),
        (5, b"", "is text"),
        ("a", "text", "is bytes"),
        ("", b"", "event name cannot be empty"),
        ("app-id", b"", "reserved"),
    ):
        with pytest.raises(UsageError, match=text):
            backend.emit_event(untyped(name), untyped(payload))
    for report_data in (b"", bytes(65), bytearray(64), "0" * 64):
        with pytest.raises(UsageError, match="64 bytes"):
            backend.get_quote_response(untyped(report_data))
    assert len(EventLog.parse(backend.read_event_log()).events) == count


# -- other agents ----------------------------------------------------------------------------------


def opened(found: ScriptedAgent) -> DstackAgent:
    """Return the backend, and forget what it asked when it was made."""
    backend = DstackAgent(endpoint=found.path)
    found.requests.clear()
    return backend


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        ({"quote": 5}, BackendError, "malformed: quote: quote is not"),
        ({"quote": "xy"}, BackendError, "malformed: quote: quote is not hex"),
        ({"quote": ["00"]}, BackendError, "malformed: quote: quote is not"),
        ({"quote": ""}, QuoteUnavailableError, "no quote: it runs on another platform"),
        ({}, QuoteUnavailableError, "no quote: it runs on another platform"),
        ([], BackendError, "not a JSON object"),
    ],
)
def test_a_quote_that_is_none(answer: object, kind: type[Exception], text: str) -> None:
    """The field is named."""
    with usual_agent(GetQuote=response(answer)) as found:
        backend = opened(found)
        with pytest.raises(BackendError, match=text) as caught:
            backend.get_quote(ASKED)
        assert type(caught.value) is kind
        assert found.requests[0].message == {"report_data": ASKED.hex()}


def test_without_a_log_it_is_empty() -> None:
    """As on platforms that have none; what is no text is refused."""
    for fields in ({}, {"event_log": ""}, {"event_log": None}):
        with usual_agent(GetQuote=response(fields)) as found:
            assert opened(found).read_event_log() == b""
    with (
        usual_agent(GetQuote=response({"event_log": [1]})) as found,
        pytest.raises(BackendError, match="malformed: event_log"),
    ):
        opened(found).read_event_log()


@pytest.mark.parametrize(
    ("info", "kind", "text"),
    [
        ({"tcb_info": ""}, UnsupportedError, "hides"),
        ({}, UnsupportedError, "hides"),
        ({"tcb_info": "{}"}, UnsupportedError, "does not tell"),
        ({"tcb_info": {}}, BackendError, "malformed: tcb_info"),
        ({"tcb_info": "{"}, BackendError, "malformed: tcb_info"),
        ({"tcb_info": "[" * 100_000}, BackendError, "malformed: tcb_info"),
        ({"tcb_info": '{"app_compose":{}}'}, BackendError, "malformed: app_compose"),
    ],
)
def test_an_app_that_is_hidden(info: object, kind: type[Exception], text: str) -> None:
    """Hiding is the app's right; a malformed answer is the agent's fault."""
    with (
        usual_agent(Info=response(info)) as found,
        pytest.raises(AttestKitError, match=text) as caught,
    ):
        opened(found).read_app_compose()
    assert type(caught.value) is kind


def test_app_compose_is_text_of_any_kind() -> None:
    """Its bytes are what is measured: nothing is written anew."""
    text = '{ "name": "h\u00e9",\r\n "runner":\t"bash" }\n'
    info = {"tcb_info": json.dumps({"app_compose": text})}
    with usual_agent(Info=response(info)) as found:
        assert opened(found).read_app_compose() == text.encode()


def test_agents_without_events() -> None:
    """Those since 0.6.0 do not have the call, and simulators of 0.5.11 refuse it."""
    words = "runtime event emission is unavailable in simulator mode: x"
    for answer, text in (
        (response({"error": "Service not found: EmitEvent"}, 400), "from 0.6.0 on"),
        (response({"error": words}, 400), "simulator mode"),
    ):
        with usual_agent(EmitEvent=answer) as found:
            with pytest.raises(UnsupportedError, match=text):
                opened(found).emit_event("x", b"")
            assert len([one for one in found.requests if one.method == "EmitEvent"]) == 1
    with usual_agent(EmitEvent=response(b"")) as found:  # one that answers nothing at all
        opened(found).emit_event("x", b"\xff")
        assert found.requests[-1].message == {"event": "x", "payload": "ff"}


# -- where it is -----------------------------------------------------------------------------------


def test_the_order_of_places(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The argument, the environment, the first socket that exists; as the official clients look."""
    assert (
        *("/var/run/dstack.sock", "/run/dstack.sock"),
        *("/var/run/dstack/dstack.sock", "/run/dstack/dstack.sock"),
    ) == USUAL
    with usual_agent() as named, usual_agent() as usual:
        monkeypatch.setattr(paths, "AGENT_SOCKETS", ("/nowhere", usual.path, named.path))
        assert backends.agent_endpoint() == (usual.path, False)
        assert usual.path in repr(DstackAgent())
        monkeypatch.setenv(VARIABLE, named.path)
        assert backends.agent_endpoint() == (named.path, True)
        assert named.path in repr(DstackAgent())
        assert server.dstack in repr(DstackAgent(endpoint=server.dstack))
        monkeypatch.setenv(VARIABLE, "")
        assert backends.agent_endpoint() == (usual.path, False)


def test_nowhere_is_an_error_that_lists_the_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what to do."""
    monkeypatch.setattr(paths, "AGENT_SOCKETS", ("/nowhere/a", "/nowhere/b"))
    for ask in (DstackAgent, DstackAgent.probe, DstackAgent.probe_unnamed):
        with pytest.raises(BackendUnavailableError) as caught:
            ask()
        for word in (VARIABLE, "/nowhere/a, /nowhere/b", "container"):
            assert word in str(caught.value)


def test_a_named_agent_that_is_down_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detection stops there: who named an agent wants no other evidence in its place."""
    monkeypatch.setenv(VARIABLE, "/nowhere/agent.sock")
    with pytest.raises(UsageError, match=f"{VARIABLE} names an agent: .*/nowhere/agent.sock"):
        DstackAgent.probe_unnamed()
    with pytest.raises(UsageError, match=VARIABLE):
        backends.detect()


def test_a_place_that_may_not_be_looked_at_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with it is then said, and no other agent is taken."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(paths, "AGENT_SOCKETS", ("/secret/s", "/other/s"))
    assert backends.agent_endpoint() == ("/secret/s", False)


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ({"Version": response(b"<html>")}, "cannot be read"),
        ({"Version": response({"error": "no"}, 500)}, "no"),
    ],
)
def test_something_else_is_no_agent(answers: dict[str, Script], text: str) -> None:
    """What answers is asked for what only an agent has."""
    with usual_agent(**answers) as found, pytest.raises(BackendError, match=text):
        DstackAgent.probe(found.path)


def test_an_old_agent_is_one_too() -> None:
    """Releases before 0.5.7 have no Version, but Info; a server that has neither is none."""
    with scripted_agent({"Info": response({})}) as found:
        DstackAgent.probe(found.path)
    with (
        scripted_agent({}) as found,
        pytest.raises(BackendUnavailableError, match="no guest agent, but something else"),
    ):
        DstackAgent.probe(found.path)


@needs_shared
def test_an_agent_of_snp_gives_its_evidence() -> None:
    """A report of AMD's inside the answer, and no quote."""
    evidence = json.loads(data("dstack/verifier/sev-snp-attestation.json"))
    answer = {"quote": "", "event_log": "", "attestation": evidence["attestation"]}
    with usual_agent(GetQuote=response(answer)) as found:
        backend = opened(found)
        assert backend.simulated
        read = Attestation.from_agent_response(backend.get_quote_response(ASKED))
        assert read.quote is None
        assert backend.read_event_log() == b""
        with pytest.raises(QuoteUnavailableError, match="get_quote_response"):
            backend.get_quote(ASKED)
