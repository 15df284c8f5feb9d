"""Evidence of a running server, which three verifiers accept."""

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

import httpx
import pytest

from attestkit import Attestation, Collateral, Quote, Verifier, ra_tls
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from tests.clients.js_dcap_qvl import encode_case, node_program, verify_with_javascript
from tests.clients.python_dcap_qvl import verify_with_dcap_qvl
from tests.serve.server import SEED, Server, running_server

pytestmark = pytest.mark.slow

PKI: Final = SimulatedPki(bytes.fromhex(SEED))
NONCE: Final = bytes(range(64))
METHODS: Final = ("Attest", "GetQuote")


class ServerEvidence(NamedTuple):
    """Evidence from a server, and the time of its creation."""

    answers: dict[str, dict[str, Any]]  # by method
    tls: dict[str, Any]  # response of GetTlsKey
    now: int
    collateral: Collateral

    def evidence(self, method: str) -> Attestation:
        """Return the evidence of a method."""
        return Attestation.from_agent_response(self.answers[method])

    def quote(self, method: str) -> Quote:
        """Return the quote in the evidence."""
        quote = self.evidence(method).quote
        assert quote is not None
        return quote

    def verifier(self) -> Verifier:
        """Return a verifier that trusts the server's root."""
        return Verifier(trust_anchor=PKI.root_der, collateral=self.collateral, clock=self._clock)

    def _clock(self) -> datetime:
        return datetime.fromtimestamp(self.now, timezone.utc)


def _collect_evidence(server: Server) -> ServerEvidence:
    with httpx.Client(transport=httpx.HTTPTransport(uds=server.dstack)) as client:

        def call(method: str, **fields: object) -> dict[str, Any]:
            answer = client.post(f"http://dstack/{method}", json=fields)
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()
            return found

        call("EmitEvent", event="model-loaded", payload=b"llama".hex())
        answers = {method: call(method, report_data=NONCE.hex()) for method in METHODS}
        tls = call("GetTlsKey", subject="app", usage_ra_tls=True, usage_server_auth=True)
    now = int(datetime.now(timezone.utc).timestamp())
    return ServerEvidence(answers, tls, now, PKI.collateral(now))


@pytest.fixture(scope="module")
def collected() -> Iterator[ServerEvidence]:
    """Return evidence of a running server."""
    with running_server() as server:
        yield _collect_evidence(server)


@pytest.mark.parametrize("method", METHODS)
def test_attestkit_verifies_evidence(collected: ServerEvidence, method: str) -> None:
    """Log, OS image and identity are valid."""
    result = collected.verifier().verify(collected.evidence(method), report_data=NONCE)
    assert result.claims.event_registers == (0, 1, 2, 3)
    assert result.claims.events[-1].name == "model-loaded"
    assert result.claims.os_image_hash
    assert result.app_info is not None
    assert len(result.app_info.app_id) == 20


@pytest.mark.parametrize("method", METHODS)
def test_python_dcap_qvl_verifies_quote(collected: ServerEvidence, method: str) -> None:
    """The quote is UpToDate under the server's root only."""
    raw = collected.quote(method).raw
    assert (
        verify_with_dcap_qvl(raw, collected.collateral, PKI.root_der, collected.now).status
        == "UpToDate"
    )
    assert verify_with_dcap_qvl(raw, collected.collateral, None, collected.now).status == "reject"


def test_javascript_dcap_qvl_verifies_quote(collected: ServerEvidence) -> None:
    """The quote is UpToDate under the server's root only."""
    node = node_program()
    raws = [collected.quote(method).raw for method in METHODS]
    trusting = [encode_case(raw, collected.collateral, collected.now, PKI.root_der) for raw in raws]
    assert verify_with_javascript(node, trusting) == [
        {"status": "UpToDate", "advisories": []}
    ] * len(raws)
    for verdict in verify_with_javascript(
        node, [encode_case(raw, collected.collateral, collected.now, None) for raw in raws]
    ):
        assert "error" in verdict


def test_certificate_of_server_verifies(collected: ServerEvidence) -> None:
    """GetTlsKey's certificate verifies; over another key it is refused."""
    leaf = collected.tls["certificate_chain"][0]
    result = ra_tls.verify(leaf, collected.verifier(), max_lifetime=None)
    assert result.claims.event_registers == (3,)
    assert result.app_info is not None
