"""Origin of an agent's quotes: without a name, only agents with quotes of hardware are used."""

import pytest

import attestkit
from attestkit import Quote, backends
from attestkit.backends import detection
from attestkit.backends.dstack_agent import DstackAgent
from attestkit.backends.linux import kernel_paths as paths
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendBusyError, BackendUnavailableError, QuoteUnavailableError
from tests.backends.dstack_agent.scripted_agent import (
    SECRET,
    agent_with_defaults,
    response,
    wait_for_close,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.samples.quotes import sample
from tests.serve.server import Server
from tests.vectors import HAVE_SHARED, needs_shared

VARIABLE = "DSTACK_SIMULATOR_ENDPOINT"
REPORT_DATA = bytes(range(64))

GENUINE = sample("quotes/dcap-qvl/tdx_quote") if HAVE_SHARED else b""
OTHER_ROOT = sample("quotes/cc-trusted-api/quote.bin") if HAVE_SHARED else b""
V5 = sample("quotes/go-tdx-guest/quote_v5_sample.dat") if HAVE_SHARED else b""
SGX = sample("quotes/dcap-qvl/sgx_quote") if HAVE_SHARED else b""


# -- simulated or hardware -------------------------------------------------------------------------


def why_simulated(quote: bytes, report_data: bytes | None = None, server: str = "") -> str:
    """Return why an agent with this quote counts as simulated."""
    report_data = Quote.parse(quote).report_data if report_data is None else report_data
    answer = response({"quote": quote.hex(), "event_log": "[]"}, Server=server)
    with agent_with_defaults(GetQuote=answer) as found:
        backend = DstackAgent(endpoint=found.path, random=lambda _: report_data)
        assert found.requests[1].message == {"report_data": report_data.hex()}
        assert backend.simulated == bool(backend.why_simulated)
        return backend.why_simulated


@needs_shared
def test_hardware_quote_is_not_simulated() -> None:
    """The quote is fresh and signed, and its chain ends at Intel's root."""
    assert why_simulated(GENUINE) == ""
    assert why_simulated(V5) == ""
    assert why_simulated(GENUINE, server="dstack guest agent") == ""


def test_simulator_is_detected_by_header_or_root(server: Server) -> None:
    """The root certificate reveals a simulator without the header."""
    assert "Server header" in DstackAgent(endpoint=server.dstack).why_simulated
    assert "not Intel's SGX Root CA" in why_simulated(Simulator().get_quote(REPORT_DATA))


@needs_shared
@pytest.mark.parametrize("header", ["dstack Simulator", "attestkit simulator"])
def test_simulator_header_is_decisive(header: str) -> None:
    """The header counts even with a genuine quote."""
    assert "Server header" in why_simulated(GENUINE, server=header)


@needs_shared
def test_captured_quote_is_simulated() -> None:
    """A replayed quote has other report data or an invalid signature."""
    assert "not over the requested report data" in why_simulated(GENUINE, report_data=REPORT_DATA)
    patched = bytearray(GENUINE)
    patched[568:632] = REPORT_DATA
    assert "invalid signature" in why_simulated(bytes(patched))
    assert "not Intel's SGX Root CA" in why_simulated(OTHER_ROOT)
    assert "not a quote of a TD" in why_simulated(SGX)


@needs_shared
def test_foreign_certificate_chain_is_simulated() -> None:
    """A hardware chain does not validate another key's signature."""
    own, chain = Simulator().get_quote(REPORT_DATA), Quote.parse(GENUINE).certification.data
    replaced = Quote.parse(own).certification.data
    borrowed, at = bytearray(own), own.index(replaced)
    borrowed[at : at + len(replaced)] = chain
    for size_at in (632, 766, at - 4):  # of the signature data and of both certification data
        size = int.from_bytes(own[size_at : size_at + 4], "little") + len(chain) - len(replaced)
        borrowed[size_at : size_at + 4] = size.to_bytes(4, "little")
    assert Quote.parse(bytes(borrowed)).pck_chain == Quote.parse(GENUINE).pck_chain
    assert "invalid signature" in why_simulated(bytes(borrowed))


@needs_shared
def test_changed_quote_byte_is_simulated() -> None:
    """A changed bit in header, body, signatures, key or enclave report is detected."""
    report_data, quote = Quote.parse(GENUINE).report_data, bytearray(GENUINE)
    end = GENUINE.index(b"-----BEGIN")
    with agent_with_defaults() as found:
        for at in range(0, end, 13):
            quote[at] ^= 1
            found.answers["GetQuote"] = response({"quote": quote.hex()})
            assert DstackAgent(endpoint=found.path, random=lambda _: report_data).simulated, at
            quote[at] ^= 1
        found.answers["GetQuote"] = response({"quote": quote.hex()})
        assert not DstackAgent(endpoint=found.path, random=lambda _: report_data).simulated


@every_case(
    ("answer", "text"),
    [
        (response({"quote": "", "attestation": SECRET}), "no TDX quote"),
        (response({}), "no TDX quote"),
        (response({"quote": "00"}), "48-byte header"),
        (response({"quote": "zz"}), "not hex"),
        (response(b"{"), "not JSON"),
        (response({"error": "the quoting service is gone"}, 500), "quoting service is gone"),
    ],
)
def test_agent_without_valid_quote_is_simulated(answer: bytes, text: str) -> None:
    """The agent can still be used by name."""
    with agent_with_defaults(GetQuote=answer) as found:
        backend = DstackAgent(endpoint=found.path)
        assert backend.simulated
        assert text in backend.why_simulated


def test_unavailable_agent_is_an_error() -> None:
    """An agent that is missing, has no quotes or times out cannot be constructed."""
    with (
        agent_with_defaults(GetQuote=response({"error": "x"}, 404)) as found,
        raises(BackendUnavailableError, "missing"),
    ):
        DstackAgent(endpoint=found.path)
    with pytest.raises(BackendUnavailableError):
        DstackAgent(endpoint="/nowhere/s")
    with (
        agent_with_defaults(GetQuote=wait_for_close) as found,
        raises(BackendBusyError, "timed_out"),
    ):
        DstackAgent(endpoint=found.path, timeout=0.1)


# -- detection -------------------------------------------------------------------------------------


@pytest.fixture
def only_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit detection to agents."""
    monkeypatch.setattr(detection, "AUTO_ORDER", ("dstack_agent",))


@pytest.mark.usefixtures("only_agents")
def test_detect_never_selects_simulated_agent(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket in a default path is not enough; the variable or the name is needed."""
    monkeypatch.setattr(paths, "AGENT_SOCKETS", (server.dstack,))
    with pytest.raises(BackendUnavailableError) as caught:
        attestkit.open()
    text = str(caught.value)
    for word in ("simulated (its Server header", server.dstack, VARIABLE, "dstack_agent"):
        assert word in text
    with attestkit.open("dstack_agent") as tee:
        assert tee.simulated
    monkeypatch.setenv("ATTESTKIT_BACKEND", "dstack_agent")
    with attestkit.open() as tee:
        assert tee.simulated
    monkeypatch.delenv("ATTESTKIT_BACKEND")
    monkeypatch.setenv(VARIABLE, server.dstack)
    with attestkit.open() as tee:
        assert tee.backend.name == "dstack_agent"
        assert tee.simulated


@needs_shared
@pytest.mark.usefixtures("only_agents")
def test_detect_selects_hardware_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent with an old quote is not selected."""
    report_data = Quote.parse(GENUINE).report_data
    with agent_with_defaults(GetQuote=response({"quote": GENUINE.hex()})) as found:
        monkeypatch.setattr(paths, "AGENT_SOCKETS", (found.path,))
        with raises(BackendUnavailableError, "simulated"):
            DstackAgent.probe_for_detection()
        monkeypatch.setattr("os.urandom", lambda size: report_data[:size])
        DstackAgent.probe_for_detection()
        assert backends.detect() is DstackAgent


@pytest.mark.usefixtures("only_agents")
def test_detect_needs_name_for_other_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence of SEV-SNP does not prove its origin by itself."""
    snp = response({"quote": "", "event_log": "", "attestation": "00"})
    with agent_with_defaults(GetQuote=snp) as found:
        monkeypatch.setattr(paths, "AGENT_SOCKETS", (found.path,))
        with raises(BackendUnavailableError, "simulated"):
            DstackAgent.probe_for_detection()
        DstackAgent.probe()
        monkeypatch.setenv(VARIABLE, found.path)
        DstackAgent.probe_for_detection()


def test_detect_stops_at_failing_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The agent's error is raised; a server without quotes is not an agent."""
    with agent_with_defaults(GetQuote=response({"error": "no quoting service"}, 500)) as found:
        monkeypatch.setattr(paths, "AGENT_SOCKETS", (found.path,))
        with raises(QuoteUnavailableError, "agent_error"):
            backends.detect()
        found.answers["GetQuote"] = response({"error": "x"}, 404)
        with raises(BackendUnavailableError, "missing"):
            DstackAgent.probe_for_detection()
