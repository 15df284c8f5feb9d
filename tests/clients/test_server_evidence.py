"""Evidence of a running server: three verifiers accept it, and every change is detected."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final, NamedTuple

import httpx
import pytest

from attestkit import Attestation, Collateral, Quote, Verifier, ra_tls
from attestkit.attestation.wire.evidence_parts import Evidence, Tdx
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.errors import AttestKitError, FormatError, ReplayError, SignatureError
from tests.clients.js_dcap_qvl import encode_case, node_program, verify_with_javascript
from tests.dcap import judge as python_judge
from tests.serve.server import SEED, Server, running_server

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
    assert python_judge(raw, collected.collateral, PKI.root_der, collected.now).status == "UpToDate"
    assert python_judge(raw, collected.collateral, None, collected.now).status == "reject"


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
    result = ra_tls.verify(leaf, collected.verifier())
    assert result.claims.event_registers == (3,)
    assert result.app_info is not None


# -- changes are detected ----------------------------------------------------------------------


def alter_platform(evidence: Attestation, change: Callable[[Tdx], Tdx]) -> Attestation:
    """Return the evidence with a changed platform part."""
    platform = evidence.evidence.platform
    assert isinstance(platform, Tdx)
    return Attestation(Evidence(change(platform), evidence.evidence.stack))


def flip_bit(data: bytes, at: int) -> bytes:
    """Return the bytes with one bit flipped."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def get_error(collected: ServerEvidence, evidence: Attestation) -> AttestKitError:
    """Return the error of verifying the encoded evidence."""
    with pytest.raises(AttestKitError) as caught:
        collected.verifier().verify(evidence.to_bytes(), report_data=NONCE)
    return caught.value


@pytest.mark.parametrize("method", METHODS)
def test_changed_event_is_detected(collected: ServerEvidence, method: str) -> None:
    """A changed firmware digest or runtime event gives a replay error of its register."""
    evidence = collected.evidence(method)
    events = evidence.event_log.events
    assert len(events) > 20
    for index, event in enumerate(events):

        def alter(platform: Tdx, at: int = index) -> Tdx:
            old = platform.event_log[at]
            if old.event_type == 0x08000001:
                new = old._replace(event_payload=old.event_payload + b"\1", digest=b"")
            else:
                new = old._replace(digest=flip_bit(old.digest, 5))
            return platform._replace(
                event_log=(*platform.event_log[:at], new, *platform.event_log[at + 1 :])
            )

        error = get_error(collected, alter_platform(evidence, alter))
        assert isinstance(error, ReplayError), index
        assert f"RTMR{event.register}" in str(error), index


FIELDS: Final = {  # name: offset in a version 4 quote
    "mrtd": 184,
    "mr_config_id": 232,
    "rtmr0": 376,
    "rtmr1": 424,
    "rtmr2": 472,
    "rtmr3": 520,
    "report_data": 568,
    "header": 30,
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FIELDS)
def test_changed_register_is_detected(collected: ServerEvidence, method: str, name: str) -> None:
    """A flipped bit of signed data gives a signature error."""
    error = get_error(
        collected,
        alter_platform(
            collected.evidence(method),
            lambda platform: platform._replace(quote=flip_bit(platform.quote, FIELDS[name])),
        ),
    )
    assert isinstance(error, SignatureError)
    assert error.reason == "quote_bad_signature"


def _with_quote(quote: bytes, platform: Any) -> Any:
    return platform._replace(quote=quote)


@pytest.mark.parametrize("method", METHODS)
def test_changed_certificate_is_detected(collected: ServerEvidence, method: str) -> None:
    """A changed PCK or CA certificate is refused."""
    raw = collected.quote(method).raw
    starts = [at for at in range(len(raw)) if raw.startswith(b"-----BEGIN", at)]
    assert len(starts) == 3
    for start in starts[:2]:
        at = start + 400
        letter = b"A" if raw[at : at + 1] != b"A" else b"B"
        quote = raw[:at] + letter + raw[at + 1 :]
        error = get_error(
            collected,
            alter_platform(
                collected.evidence(method),
                partial(_with_quote, quote),
            ),
        )
        assert isinstance(error, (SignatureError, FormatError)), error
        assert "certificate" in str(error).lower()


@pytest.mark.parametrize("method", METHODS)
def test_changed_configuration_is_detected(collected: ServerEvidence, method: str) -> None:
    """Another image, memory size or measurement does not match the registers."""
    evidence = collected.evidence(method)
    config = json.loads(evidence.config)
    for name, value in (
        ("os_image_hash", "00" * 32),
        ("memory_size", config["memory_size"] + (1 << 30)),
        ("tdx_measurement", {**config["tdx_measurement"], "measurement": "AAAA"}),
    ):
        stack = evidence.evidence.stack._replace(config=json.dumps({**config, name: value}))
        error = get_error(collected, Attestation(evidence.evidence._replace(stack=stack)))
        assert error.reason == "os_image", error


@pytest.mark.parametrize("method", METHODS)
def test_changed_report_data_is_detected(collected: ServerEvidence, method: str) -> None:
    """Report data beside the quote must equal the signed report data."""
    evidence = collected.evidence(method).evidence
    stack = evidence.stack._replace(report_data=bytes(64))
    error = get_error(collected, Attestation(evidence._replace(stack=stack)))
    assert getattr(error, "reason", "") == "report_data_mismatch"
