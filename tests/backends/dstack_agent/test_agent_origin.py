"""Only an agent whose quotes come from hardware is taken by itself; all others want a name."""

from collections.abc import Iterator

import pytest

import attestkit
from attestkit import Quote, backends
from attestkit.backends.dstack_agent import DstackAgent
from attestkit.backends.linux import paths
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendBusyError, BackendUnavailableError, QuoteUnavailableError
from tests.backends.dstack_agent.scripted_agent import SECRET, response, until_it_goes, usual_agent
from tests.quotes import sample
from tests.serve.server import Server, running_server
from tests.vectors import HAVE_SHARED, needs_shared

VARIABLE = "DSTACK_SIMULATOR_ENDPOINT"
ASKED = bytes(range(64))

GENUINE = sample("quotes/dcap-qvl/tdx_quote") if HAVE_SHARED else b""
OTHER_ROOT = sample("quotes/cc-trusted-api/quote.bin") if HAVE_SHARED else b""
V5 = sample("quotes/go-tdx-guest/quote_v5_sample.dat") if HAVE_SHARED else b""
SGX = sample("quotes/dcap-qvl/sgx_quote") if HAVE_SHARED else b""


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


# -- simulated or not ------------------------------------------------------------------------------


def why(quote: bytes, asked: bytes | None = None, server: str = "") -> str:
    """Return why an agent with this quote is simulated, when asked for what it is over."""
    asked = Quote.parse(quote).report_data if asked is None else asked
    answer = response({"quote": quote.hex(), "event_log": "[]"}, Server=server)
    with usual_agent(GetQuote=answer) as found:
        backend = DstackAgent(endpoint=found.path, random=lambda _: asked)
        assert found.requests[0].message == {"report_data": asked.hex()}
        assert backend.simulated == bool(backend.why_simulated)
        return backend.why_simulated


@needs_shared
def test_quotes_of_hardware_are_not_simulated() -> None:
    """Fresh, signed, and Intel's root vouches for the signer."""
    assert why(GENUINE) == ""
    assert why(V5) == ""
    assert why(GENUINE, server="dstack guest agent") == ""


def test_our_simulator_is(server: Server) -> None:
    """By its header, and without that by its root."""
    assert "Server header" in DstackAgent(endpoint=server.dstack).why_simulated
    assert "not that of Intel's" in why(Simulator().get_quote(ASKED))


@needs_shared
@pytest.mark.parametrize("header", ["dstack Simulator", "attestkit simulator"])
def test_whoever_says_so_is(header: str) -> None:
    """Whatever quotes it gives."""
    assert "Server header" in why(GENUINE, server=header)


@needs_shared
def test_a_captured_quote_is() -> None:
    """Old, or with other report data written over it, as simulators do that have a captured one."""
    assert "over what was asked" in why(GENUINE, asked=ASKED)
    patched = bytearray(GENUINE)
    patched[568:632] = ASKED
    assert "signature does not hold" in why(bytes(patched))
    assert "not that of Intel's" in why(OTHER_ROOT)
    assert "over what was asked" in why(SGX)


@needs_shared
def test_a_quote_that_borrows_a_chain_is() -> None:
    """The certificates of hardware around a signature of one's own."""
    own, chain = Simulator().get_quote(ASKED), Quote.parse(GENUINE).certification.data
    replaced = Quote.parse(own).certification.data
    borrowed, at = bytearray(own), own.index(replaced)
    borrowed[at : at + len(replaced)] = chain
    for size_at in (632, 766, at - 4):  # of the signature data, and of both certification data
        size = int.from_bytes(own[size_at : size_at + 4], "little") + len(chain) - len(replaced)
        borrowed[size_at : size_at + 4] = size.to_bytes(4, "little")
    assert Quote.parse(bytes(borrowed)).pck_chain == Quote.parse(GENUINE).pck_chain
    assert "signature does not hold" in why(bytes(borrowed))


@needs_shared
def test_every_signed_byte_of_a_quote_counts() -> None:
    """Header, body, signatures, key and the enclave's report: one changed bit, and it is."""
    asked, quote = Quote.parse(GENUINE).report_data, bytearray(GENUINE)
    end = GENUINE.index(b"-----BEGIN")
    with usual_agent() as found:
        for at in range(0, end, 13):
            quote[at] ^= 1
            found.answers["GetQuote"] = response({"quote": quote.hex()})
            assert DstackAgent(endpoint=found.path, random=lambda _: asked).simulated, at
            quote[at] ^= 1
        found.answers["GetQuote"] = response({"quote": quote.hex()})
        assert not DstackAgent(endpoint=found.path, random=lambda _: asked).simulated


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (response({"quote": "", "attestation": SECRET}), "no TDX quote"),
        (response({}), "no TDX quote"),
        (response({"quote": "00"}), "48-byte header"),
        (response({"quote": "zz"}), "not hex"),
        (response(b"{"), "not well-formed JSON"),
        (response({"error": "the quoting service is gone"}, 500), "quoting service is gone"),
    ],
)
def test_an_agent_that_does_not_show_it_is(answer: bytes, text: str) -> None:
    """Evidence of other platforms, none, or a broken one: it can be used by its name."""
    with usual_agent(GetQuote=answer) as found:
        backend = DstackAgent(endpoint=found.path)
        assert backend.simulated
        assert text in backend.why_simulated


def test_an_agent_that_is_not_there_is_not_made() -> None:
    """Nor one that has no quotes, or does not answer in time."""
    with (
        usual_agent(GetQuote=response({"error": "x"}, 404)) as found,
        pytest.raises(BackendUnavailableError, match="no method GetQuote"),
    ):
        DstackAgent(endpoint=found.path)
    with pytest.raises(BackendUnavailableError):
        DstackAgent(endpoint="/nowhere/s")
    with (
        usual_agent(GetQuote=until_it_goes) as found,
        pytest.raises(BackendBusyError, match=r"0\.1 s"),
    ):
        DstackAgent(endpoint=found.path, timeout=0.1)


# -- without a name --------------------------------------------------------------------------------


@pytest.fixture
def only_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let detection look for an agent alone, whatever hardware this machine has."""
    monkeypatch.setattr(backends, "AUTO_ORDER", ("dstack_agent",))


@pytest.mark.usefixtures("only_agents")
def test_a_simulated_agent_is_never_found_by_chance(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket in the usual place is not enough; the variable or the name is."""
    monkeypatch.setattr(paths, "AGENT_SOCKETS", (server.dstack,))
    with pytest.raises(BackendUnavailableError) as caught:
        attestkit.open()
    text = str(caught.value)
    for word in ("simulated, because it says so itself", server.dstack, VARIABLE, "dstack_agent"):
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
def test_hardware_is_found_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """And an agent whose quote is old is not hardware."""
    asked = Quote.parse(GENUINE).report_data
    with usual_agent(GetQuote=response({"quote": GENUINE.hex()})) as found:
        monkeypatch.setattr(paths, "AGENT_SOCKETS", (found.path,))
        with pytest.raises(BackendUnavailableError, match="over what was asked"):
            DstackAgent.probe_unnamed()
        monkeypatch.setattr("os.urandom", lambda size: asked[:size])
        DstackAgent.probe_unnamed()
        assert backends.detect() is DstackAgent


@pytest.mark.usefixtures("only_agents")
def test_an_agent_of_another_platform_wants_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its evidence does not show by itself that it is none."""
    snp = response({"quote": "", "event_log": "", "attestation": "00"})
    with usual_agent(GetQuote=snp) as found:
        monkeypatch.setattr(paths, "AGENT_SOCKETS", (found.path,))
        with pytest.raises(BackendUnavailableError, match="other evidence does not tell"):
            DstackAgent.probe_unnamed()
        DstackAgent.probe()
        monkeypatch.setenv(VARIABLE, found.path)
        DstackAgent.probe_unnamed()


def test_an_agent_that_is_broken_is_no_reason_to_look_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is there, so its error is the one to see; a server without quotes is no agent."""
    with usual_agent(GetQuote=response({"error": "no quoting service"}, 500)) as found:
        monkeypatch.setattr(paths, "AGENT_SOCKETS", (found.path,))
        with pytest.raises(QuoteUnavailableError, match="no quoting service"):
            backends.detect()
        found.answers["GetQuote"] = response({"error": "x"}, 404)
        with pytest.raises(BackendUnavailableError, match="no method GetQuote"):
            DstackAgent.probe_unnamed()
