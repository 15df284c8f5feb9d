"""dstack_agent backend: evidence, app, events and endpoint of a guest agent."""

import json
from pathlib import Path

import pytest

from attestkit import Attestation, EventLog, Quote, backends
from attestkit.backends.base import AppHost, Backend, GuestAgent, RegisterExtender, SnpReporter
from attestkit.backends.dstack_agent import DstackAgent
from attestkit.backends.linux import kernel_paths as paths
from attestkit.backends.simulator import Simulator
from attestkit.errors import (
    AttestKitError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
)
from attestkit.keys import AppKeys, LocalKeys
from attestkit.testing import BackendContract
from tests.backends.dstack_agent.scripted_agent import (
    Script,
    ScriptedAgent,
    agent_with_defaults,
    response,
    scripted_agent,
)
from tests.raising import raises, repeated_subjects
from tests.serve.server import SEED, Server
from tests.untyped import untyped
from tests.vectors import data, needs_shared

VARIABLE = "DSTACK_SIMULATOR_ENDPOINT"
REPORT_DATA = bytes(range(64))
USUAL = paths.AGENT_SOCKETS  # hidden by a fixture


class TestOurServer(BackendContract):
    """Backend contract with attestkit's server as the agent."""

    @pytest.fixture(autouse=True)
    def _named(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(VARIABLE, server.dstack)

    def make_backend(self) -> Backend:
        """Return a client of the server."""
        return DstackAgent()


# -- responses -------------------------------------------------------------------------------------


def test_dstack_agent_implements_guest_agent_only(server: Server) -> None:
    """Log, registers and keys stay in the agent, so other protocols are not implemented."""
    backend = DstackAgent(endpoint=server.dstack)
    assert isinstance(backend, Backend)
    assert isinstance(backend, GuestAgent)
    for other in (RegisterExtender, SnpReporter, AppHost):
        assert not isinstance(backend, other)
    assert backend.blocking
    assert repr(backend) == f"DstackAgent(endpoint={server.dstack!r}, api='v1')"


def test_quote_and_event_log_are_complete_evidence(server: Server) -> None:
    """The log contains the emitted events and matches the quote."""
    backend = DstackAgent(endpoint=server.dstack)
    before = EventLog.parse(backend.read_event_log())
    backend.emit_event("h\u00e9llo", b"\0\xff")
    log = EventLog.parse(backend.read_event_log())
    assert len(log.events) == len(before.events) + 1
    assert (log.events[-1].name, log.events[-1].payload) == ("h\u00e9llo", b"\0\xff")
    quote = Quote.parse(backend.get_quote(REPORT_DATA))
    assert quote.report_data == REPORT_DATA
    log.check(quote)
    evidence = Attestation.from_agent_response(backend.get_quote_response(REPORT_DATA))
    assert evidence.report_data == REPORT_DATA
    assert evidence.event_log.events == log.events
    assert evidence.config == Simulator().vm_config


def test_app_compose_and_keys_are_the_agents(server: Server) -> None:
    """The document is returned byte for byte."""
    backend = DstackAgent(endpoint=server.dstack)
    twin = Simulator(seed=bytes.fromhex(SEED))
    assert backend.read_app_compose() == twin.app_compose.raw
    local = LocalKeys(AppKeys.from_seed(bytes.fromhex(SEED)))
    assert backend.keys.derive_compat("a", "b") == local.derive_compat("a", "b")
    assert backend.keys.sign(b"c", "ed25519") == local.sign(b"c", "ed25519")


def test_closed_backend_rejects_all_calls(server: Server) -> None:
    """The keys are closed, too."""
    backend = DstackAgent(endpoint=server.dstack)
    backend.close()
    backend.close()
    for call in (
        lambda: backend.get_quote(REPORT_DATA),
        backend.read_event_log,
        lambda: backend.emit_event("a", b""),
        lambda: backend.keys.derive_compat("a"),
    ):
        with raises(UsageError, "closed"):
            call()


def test_emit_event_invalid_arguments_are_rejected(server: Server) -> None:
    """Wrong types are rejected locally, reserved names by the agent."""
    backend = DstackAgent(endpoint=server.dstack)
    count = len(EventLog.parse(backend.read_event_log()).events)
    for name, payload, text in (
        ("\ud800", b"", "surrogate"),
        (5, b"", "must be text"),
        ("a", "text", "payload: must be bytes"),
        ("", b"", "event name: must not be empty"),
        ("app-id", b"", "reserved"),
    ):
        with pytest.raises(UsageError, match=text):
            backend.emit_event(untyped(name), untyped(payload))
    for report_data in (b"", bytes(65), bytearray(64), "0" * 64):
        with raises(UsageError, "wrong_size"):
            backend.get_quote_response(untyped(report_data))
    assert len(EventLog.parse(backend.read_event_log()).events) == count


# -- other agents ----------------------------------------------------------------------------------


def make_backend(found: ScriptedAgent) -> DstackAgent:
    """Return the backend, with the request log empty."""
    backend = DstackAgent(endpoint=found.path)
    found.requests.clear()
    return backend


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        ({"quote": 5}, BackendError, "malformed_response"),
        ({"quote": "xy"}, BackendError, "malformed_response"),
        ({"quote": ["00"]}, BackendError, "malformed_response"),
        ({"quote": ""}, QuoteUnavailableError, "empty"),
        ({}, QuoteUnavailableError, "empty"),
        ([], BackendError, "malformed_response"),
    ],
)
def test_quote_empty_or_malformed_is_rejected(
    answer: object, kind: type[BackendError], reason: str
) -> None:
    """A platform without quotes differs from a malformed response, whose field is named."""
    with agent_with_defaults(GetQuote=response(answer)) as found:
        backend = make_backend(found)
        with raises(kind, reason) as caught:
            backend.get_quote(REPORT_DATA)
        assert "quote" in str(caught.value).lower()
        assert not repeated_subjects(caught.value)
        assert found.requests[0].message == {"report_data": REPORT_DATA.hex()}


def test_event_log_missing_is_empty() -> None:
    """Other types than text are a malformed response."""
    for fields in ({}, {"event_log": ""}, {"event_log": None}):
        with agent_with_defaults(GetQuote=response(fields)) as found:
            assert make_backend(found).read_event_log() == b""
    with (
        agent_with_defaults(GetQuote=response({"event_log": [1]})) as found,
        raises(BackendError, "malformed_response", part="event_log"),
    ):
        make_backend(found).read_event_log()


@pytest.mark.parametrize(
    ("info", "kind", "reason", "field"),
    [
        ({"tcb_info": ""}, UnsupportedError, "no_app", "hides tcb_info"),
        ({}, UnsupportedError, "no_app", "hides tcb_info"),
        ({"tcb_info": "{}"}, UnsupportedError, "no_app", "no app_compose"),
        ({"tcb_info": {}}, BackendError, "malformed_response", "tcb_info: "),
        ({"tcb_info": "{"}, BackendError, "malformed_response", "tcb_info: "),
        ({"tcb_info": "[" * 100_000}, BackendError, "malformed_response", "tcb_info: "),
        (
            {"tcb_info": '{"app_compose":{}}'},
            BackendError,
            "malformed_response",
            "app_compose: ",
        ),
    ],
)
def test_app_compose_hidden_or_malformed_is_an_error(
    info: object, kind: type[AttestKitError], reason: str, field: str
) -> None:
    """An app may hide tcb_info; a malformed response is the agent's fault."""
    with agent_with_defaults(Info=response(info)) as found:
        with raises(kind, reason, part=field) as caught:
            make_backend(found).read_app_compose()
        assert not repeated_subjects(caught.value)


def test_app_compose_is_returned_byte_for_byte() -> None:
    """The document is measured, so it must not be re-encoded."""
    text = '{ "name": "h\u00e9",\r\n "runner":\t"bash" }\n'
    info = {"tcb_info": json.dumps({"app_compose": text})}
    with agent_with_defaults(Info=response(info)) as found:
        assert make_backend(found).read_app_compose() == text.encode()


def test_emit_event_accepts_empty_response() -> None:
    """The response of the agent has no content."""
    with agent_with_defaults(EmitEvent=response(b"")) as found:
        make_backend(found).emit_event("x", b"\xff")
        assert found.requests[-1].message == {"event": "x", "payload": "ff"}


# -- endpoint --------------------------------------------------------------------------------------


def test_endpoint_order_is_argument_environment_sockets(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is that of the official clients."""
    assert (
        *("/var/run/dstack.sock", "/run/dstack.sock"),
        *("/var/run/dstack/dstack.sock", "/run/dstack/dstack.sock"),
    ) == USUAL
    with agent_with_defaults() as named, agent_with_defaults() as usual:
        monkeypatch.setattr(paths, "AGENT_SOCKETS", ("/nowhere", usual.path, named.path))
        assert backends.find_agent_endpoint() == (usual.path, False)
        assert usual.path in repr(DstackAgent())
        monkeypatch.setenv(VARIABLE, named.path)
        assert backends.find_agent_endpoint() == (named.path, True)
        assert named.path in repr(DstackAgent())
        assert server.dstack in repr(DstackAgent(endpoint=server.dstack))
        monkeypatch.setenv(VARIABLE, "")
        assert backends.find_agent_endpoint() == (usual.path, False)


def test_endpoint_missing_lists_searched_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the remedy, too."""
    monkeypatch.setattr(paths, "AGENT_SOCKETS", ("/nowhere/a", "/nowhere/b"))
    for use in (DstackAgent, DstackAgent.probe, DstackAgent.probe_for_detection):
        with raises(BackendUnavailableError, "missing") as caught:
            use()
        for word in (VARIABLE, "/nowhere/a, /nowhere/b", "container"):
            assert word in str(caught.value)


def test_detect_stops_at_configured_unavailable_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured agent has no fallback."""
    monkeypatch.setenv(VARIABLE, "/nowhere/agent.sock")
    for find in (DstackAgent.probe_for_detection, backends.detect):
        with raises(UsageError, "wrong_value") as caught:
            find()
        assert isinstance(caught.value.__cause__, BackendUnavailableError)
        assert caught.value.__cause__.path == "/nowhere/agent.sock"
        assert VARIABLE in str(caught.value)


def test_inaccessible_socket_is_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is reported, and no other agent is used."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(paths, "AGENT_SOCKETS", ("/secret/s", "/other/s"))
    assert backends.find_agent_endpoint() == ("/secret/s", False)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"Version": response(b"<html>")}, "malformed_response"),
        ({"Version": response({"error": "no"}, 500)}, "agent_error"),
    ],
)
def test_probe_rejects_server_that_is_not_an_agent(answers: dict[str, Script], reason: str) -> None:
    """The probe calls a method that only agents have."""
    with agent_with_defaults(**answers) as found, raises(BackendError, reason, path=found.path):
        DstackAgent.probe(found.path)


def test_probe_accepts_old_agent_with_info() -> None:
    """Releases before 0.5.7 lack Version; a server without both is rejected."""
    with scripted_agent({"Info": response({})}) as found:
        DstackAgent.probe(found.path)
    with (
        scripted_agent({}) as found,
        raises(BackendUnavailableError, "missing", path=found.path),
    ):
        DstackAgent.probe(found.path)


@needs_shared
def test_snp_agent_gives_attestation_without_quote() -> None:
    """The response contains an AMD report."""
    evidence = json.loads(data("dstack/verifier/sev-snp-attestation.json"))
    answer = {"quote": "", "event_log": "", "attestation": evidence["attestation"]}
    with agent_with_defaults(GetQuote=response(answer)) as found:
        backend = make_backend(found)
        assert backend.simulated
        read = Attestation.from_agent_response(backend.get_quote_response(REPORT_DATA))
        assert read.quote is None
        assert backend.read_event_log() == b""
        with raises(QuoteUnavailableError, "empty", path=found.path, part="use get_quote_response"):
            backend.get_quote(REPORT_DATA)
