"""APIs of agents: which one is found, and what is used of agents that have only some of them."""

import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Final

import pytest

import attestkit
from attestkit import EventLog, Quote
from attestkit.backends.base import Backend
from attestkit.backends.dstack_agent import DstackAgent
from attestkit.backends.dstack_agent.client import AgentClient
from attestkit.backends.simulator import Simulator
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
)
from attestkit.keys import AgentKeys, AppKeys, LocalKeys
from attestkit.testing import BackendContract
from tests.backends.dstack_agent.scripted_agent import (
    PAGE,
    Request,
    Script,
    ScriptedAgent,
    agent_with_defaults,
    response,
    scripted_agent,
)
from tests.raising import raises
from tests.serve.client import Connection
from tests.serve.server import SEED, Server

REPORT_DATA: Final = bytes(range(64))
VERSION: Final = response({"version": "0.6.6", "rev": "unknown"})
REMOVED: Final = (
    "EmitEvent was removed in dstack 0.6.0; runtime RTMR3 events are system-owned and cannot be "
    "extended by apps"
)
LOCAL: Final = LocalKeys(AppKeys.from_seed(bytes.fromhex(SEED)))


# -- the probe -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "api"),
    [
        (VERSION, "v1"),
        (response({"version": "", "rev": ""}), "v1"),
        (PAGE, "v0"),
        (response(b"", 404), "v0"),
        (response({"error": "no such page"}, 404), "v0"),
        (response({"error": {"code": 404, "description": "x"}}, 404), "v0"),
        (response({"error": "Service not found: v1"}, 400), "v0"),
        (response(b"Service not found", 404), "v0"),  # a proxy's text, not JSON
    ],
)
def test_find_api_tells_generations_apart(answer: bytes, api: str) -> None:
    """One request decides: Version of v1 exists, or nothing is mounted there."""
    with scripted_agent({"v1/Version": answer}) as agent:
        client = AgentClient(agent.path)
        assert client.find_api() == api
        assert AgentKeys(client).api == api
        assert DstackAgent.find_api(agent.path) == api
    assert [(request.line, request.message) for request in agent.requests] == [
        ("POST /v1/Version HTTP/1.1", {})
    ] * 2


def test_find_api_is_remembered() -> None:
    """The client asks once, shows the API afterwards, and keeps it in a pickle."""
    with scripted_agent({"v1/Version": VERSION}) as agent:
        client = AgentClient(agent.path)
        assert repr(client) == f"AgentClient({agent.path!r})"
        for copied in (False, False, True):
            one = pickle.loads(pickle.dumps(client)) if copied else client
            assert one.find_api() == "v1"
            assert repr(one) == f"AgentClient({agent.path!r}, api='v1')"
        assert repr(AgentKeys(client)) == f"AgentKeys(AgentClient({agent.path!r}, api='v1'))"
        assert len(agent.requests) == 1
        other = AgentClient(agent.path)
        other.close()
        with raises(UsageError, "closed"):
            other.find_api()


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (response({"error": "Service not found: Version"}, 404), BackendUnavailableError, None),
        (response(b"<html>"), BackendError, "malformed_response"),
        (response([]), BackendError, "malformed_response"),
        (response({}), BackendError, "malformed_response"),
        (response({"version": 6}), BackendError, "malformed_response"),
        (response({"error": "x"}, 400), BackendError, "agent_error"),
        (response({"error": "x"}, 401), BackendError, "agent_error"),
        (response({"error": "x"}, 500), BackendError, "agent_error"),
        (response({"error": "x"}, 503), BackendBusyError, "overloaded"),
    ],
)
def test_find_api_of_other_server_is_an_error(
    answer: bytes, kind: type[AttestKitError], reason: str | None
) -> None:
    """Only a missing API is v0; another failure is not remembered and selects nothing."""
    with scripted_agent({"v1/Version": answer}) as agent:
        client = AgentClient(agent.path)
        for use in (client.find_api, lambda: DstackAgent(endpoint=agent.path)):
            with raises(kind, reason or "missing", path=agent.path):
                use()
        agent.answers["v1/Version"] = VERSION
        assert client.find_api() == "v1"


# -- agents with some mount points -----------------------------------------------------------------


def forward(server: Server, allows: Callable[[str], bool]) -> Script:
    """Return a script that forwards requests to a server; other paths have a page."""

    def answer(connection: socket.socket, request: Request) -> None:
        path = request.line.split(" ")[1]
        if not allows(path):
            connection.sendall(PAGE)
            return
        with closing(Connection(server.dstack)) as upstream:
            found = upstream.call(path.removeprefix("/"), request.message)
        connection.sendall(response(found.body, found.status, Server=found.headers["server"]))

    return answer


Agents = Callable[[Callable[[str], bool]], ScriptedAgent]
OLD: Final = staticmethod(lambda path: path.count("/") == 1)  # release 0.5
NO_ALIAS: Final = staticmethod(lambda path: path.startswith(("/v0/", "/v1/")))
V1_ONLY: Final = staticmethod(lambda path: path.startswith("/v1/"))


@pytest.fixture
def agents(server: Server) -> Iterator[Agents]:
    """Return a function that runs an agent with some paths of the server until the test ends."""
    with ExitStack() as stack:
        yield lambda allows: stack.enter_context(scripted_agent(forward(server, allows)))


class _ContractOfAgent(BackendContract):
    """Backend contract with a part of the server's paths."""

    allows: Callable[[str], bool]

    @pytest.fixture(autouse=True)
    def _named(self, agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DSTACK_SIMULATOR_ENDPOINT", agents(self.allows).path)

    def make_backend(self) -> Backend:
        """Return a client of the agent."""
        return DstackAgent()


class TestAgentOfRelease05(_ContractOfAgent):
    """An agent without v1 and without /v0."""

    allows = OLD


class TestAgentWithoutAlias(_ContractOfAgent):
    """An agent whose v0 is at /v0 only."""

    allows = NO_ALIAS


def test_agent_without_alias_is_complete(agents: Agents) -> None:
    """Methods of v0 are found below /v0, which is remembered."""
    agent = agents(NO_ALIAS)
    backend = DstackAgent(endpoint=agent.path)
    assert (backend.api, backend.keys.api) == ("v1", "v1")
    backend.emit_event("without-alias", b"1")
    agent.requests.clear()
    assert backend.keys.derive_compat("a") == LOCAL.derive_compat("a")
    assert Quote.parse(backend.get_quote(REPORT_DATA)).report_data == REPORT_DATA
    assert [request.method for request in agent.requests] == ["v0/GetKey", "v0/GetQuote"]


def test_agent_with_v1_only_has_evidence_app_and_v1_keys(agents: Agents) -> None:
    """Quotes are taken from evidence; keys of v0 are an error, and never those of v1."""
    backend = DstackAgent(endpoint=agents(V1_ONLY).path)
    quote = Quote.parse(backend.get_quote(REPORT_DATA))
    assert quote.report_data == REPORT_DATA
    EventLog.parse(backend.read_event_log()).check(quote)
    assert backend.read_app_compose() == Simulator(seed=bytes.fromhex(SEED)).app_compose.raw
    for algorithm in ("secp256k1", "ed25519"):
        assert backend.keys.derive_v1("a", algorithm) == LOCAL.derive_v1("a", algorithm)
    for call in (
        lambda: backend.keys.derive_compat("a"),
        lambda: backend.keys.derive_compat("a", "", "ed25519"),
        lambda: backend.keys.derive("a", "p256"),
        lambda: backend.keys.sign(b"a", "ed25519"),
        lambda: backend.emit_event("a", b""),
    ):
        with raises(UnsupportedError, "feature"):
            call()


def test_agent_of_release_0_5_has_no_v1_keys(agents: Agents) -> None:
    """A key of v1 is an error there, and never that of v0."""
    agent = agents(OLD)
    backend = DstackAgent(endpoint=agent.path)
    assert backend.api == "v0"
    assert repr(backend) == f"DstackAgent(endpoint={agent.path!r}, api='v0')"
    assert backend.keys.derive_compat("a") == LOCAL.derive_compat("a")
    agent.requests.clear()
    with raises(UnsupportedError, "feature"):
        backend.keys.derive_v1("a", "secp256k1")
    assert [request.method for request in agent.requests] == ["v1/GetKey"]


def test_apis_of_one_agent_have_the_same_claims(agents: Agents) -> None:
    """Evidence of both APIs is of one boot: registers, events, configuration and app agree."""
    found: list[Any] = []
    for allows in (OLD, NO_ALIAS, V1_ONLY):
        with attestkit.open("dstack_agent", endpoint=agents(allows).path) as tee:
            evidence = tee.attest(report_data=REPORT_DATA)
            quote = evidence.quote
            assert quote is not None
            names = [(event.name, event.payload) for event in evidence.event_log.runtime]
            assert tee.event_log().runtime == evidence.event_log.runtime
            app = (tee.app_compose.raw, tee.vm_config)
        found.append((quote.rtmrs, quote.report_data, names, evidence.config, app))
    assert found[0] == found[1] == found[2]


def not_found(method: str) -> bytes:
    """Return the response of an API without the method."""
    return response({"error": f"Service not found: {method}"}, 404)


REFUSED = response({"error": "it: not allowed on this socket"}, 403)


@contextmanager
def limited(server: Server, *methods: str, other: bytes = REFUSED) -> Iterator[ScriptedAgent]:
    """Run an agent whose socket is limited to some methods of both APIs."""
    every = forward(server, lambda _: True)
    answers: dict[str, Script] = {"": other}
    answers |= {f"{mount}{name}": every for name in methods for mount in ("", "v0/", "v1/")}
    with scripted_agent(answers) as agent:
        yield agent


OTHERS = pytest.mark.parametrize("other", [REFUSED, not_found("it")], ids=["403", "404"])


@OTHERS
def test_limited_socket_with_get_quote_has_evidence(server: Server, other: bytes) -> None:
    """Without Attest the response to GetQuote is used; keys are not there."""
    with limited(server, "GetQuote", "Info", "Version", other=other) as agent:
        backend = DstackAgent(endpoint=agent.path)
        assert backend.api == "v1"
        quote = Quote.parse(backend.get_quote(REPORT_DATA))
        EventLog.parse(backend.read_event_log()).check(quote)
        assert '"quote"' in backend.get_quote_response(REPORT_DATA)
        with raises(UnsupportedError, "feature"):
            backend.keys.derive_v1("a", "ed25519")


@OTHERS
def test_limited_socket_with_attest_has_quotes(server: Server, other: bytes) -> None:
    """Without GetQuote the quote is taken from the response to Attest."""
    with limited(server, "Attest", "Version", other=other) as agent:
        backend = DstackAgent(endpoint=agent.path)
        assert Quote.parse(backend.get_quote(REPORT_DATA)).report_data == REPORT_DATA
        with raises(UnsupportedError, "feature"):
            backend.read_app_compose()


@OTHERS
def test_limited_socket_without_version_is_refused_with_remedy(
    server: Server, other: bytes
) -> None:
    """An API that lacks Version cannot be told from another server's."""
    with (
        limited(server, "Attest", "GetQuote", other=other) as agent,
        raises(BackendUnavailableError, "missing", part="allow the method Version"),
    ):
        DstackAgent(endpoint=agent.path)


# -- responses of agents with v1 -------------------------------------------------------------------


def v1_agent(**answers: Script) -> Any:
    """Run an agent with v1 whose Attest and Info can be replaced; they are empty by default."""
    usual: dict[str, Script] = {
        "v1/Version": VERSION,
        "v1/Attest": response({"attestation": "", "boottime_gpu_evidence": []}),
    }
    named = {name.replace("v1_", "v1/"): answer for name, answer in answers.items()}
    return agent_with_defaults(**(usual | named))


@pytest.mark.parametrize("attestation", [5, "xy", "00", "83a7", None, ["00"]])
def test_v1_attest_malformed_names_the_field(attestation: object) -> None:
    """Malformed evidence is the agent's fault; without evidence there is neither quote nor log."""
    answers = {"v1_Attest": response({"attestation": attestation}), "GetQuote": not_found("it")}
    with v1_agent(**answers) as agent:
        backend = DstackAgent(endpoint=agent.path)
        assert backend.simulated
        if attestation is None:
            assert backend.read_event_log() == b""
            with raises(QuoteUnavailableError, "empty"):
                backend.get_quote(REPORT_DATA)
            return
        with raises(BackendError, "malformed_response", part="attestation: "):
            backend.get_quote(REPORT_DATA)
        with raises(BackendError, "malformed_response", part="attestation: "):
            backend.read_event_log()


@pytest.mark.parametrize(
    ("info", "kind", "reason"),
    [
        ({}, UnsupportedError, "no_app"),
        ({"app_compose": ""}, UnsupportedError, "no_app"),
        ({"app_compose": {}}, BackendError, "malformed_response"),
    ],
)
def test_v1_info_without_app_compose_is_an_error(
    info: object, kind: type[AttestKitError], reason: str
) -> None:
    """The document is a member of Info; tcb_info of v0 is not used instead."""
    with v1_agent(v1_Info=response(info)) as agent, raises(kind, reason, part="app_compose"):
        DstackAgent(endpoint=agent.path).read_app_compose()


def test_v1_app_compose_is_returned_byte_for_byte() -> None:
    """The document is measured, so it must not be re-encoded."""
    text = '{ "name": "h\u00e9",\r\n "runner":\t"bash" }\n'
    with v1_agent(v1_Info=response({"app_compose": text})) as agent:
        assert DstackAgent(endpoint=agent.path).read_app_compose() == text.encode()


@pytest.mark.parametrize("status", [400, 500])
def test_v1_attest_failure_is_quote_unavailable(status: int) -> None:
    """A platform that fails to return evidence is reported with its text."""
    text = "Failed to get attestation: no device"
    with v1_agent(v1_Attest=response({"error": text}, status)) as agent:
        backend = DstackAgent(endpoint=agent.path)
        assert text in backend.why_simulated
        with raises(QuoteUnavailableError, "agent_error", path=agent.path, part=text):
            backend.get_quote_response(REPORT_DATA)


def test_quote_refused_on_other_platform_is_quote_unavailable() -> None:
    """Agents of release 0.6 refuse GetQuote without TDX; the text names Attest."""
    text = "GetQuote is Intel TDX only, use Attest on this platform"
    with v1_agent(GetQuote=response({"error": text}, 400)) as agent:
        backend = DstackAgent(endpoint=agent.path)
        with raises(QuoteUnavailableError, "agent_error", part=text):
            backend.get_quote(REPORT_DATA)


def test_emit_event_removed_is_unsupported() -> None:
    """Agents of release 0.6 refuse every event, whatever its arguments."""
    with v1_agent(EmitEvent=response({"error": REMOVED}, 400)) as agent:
        backend = DstackAgent(endpoint=agent.path)
        with raises(UnsupportedError, "feature", part="removed in dstack 0.6.0"):
            backend.emit_event("a", b"")


def test_simulator_header_of_v1_response_is_decisive() -> None:
    """The Server header of the evidence counts in both APIs."""
    answer = response({"attestation": ""}, Server="dstack Simulator")
    with v1_agent(v1_Attest=answer) as agent:
        assert "Server header" in DstackAgent(endpoint=agent.path).why_simulated
