"""What the server answers is evidence: three verifiers believe it, and every change is named."""

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
from tests.clients.js_dcap_qvl import case, judge, node_program
from tests.dcap import judge as python_judge
from tests.serve.server import SEED, Server, running_server

PKI: Final = SimulatedPki(bytes.fromhex(SEED))
NONCE: Final = bytes(range(64))
METHODS: Final = ("Attest", "GetQuote")


class Answers(NamedTuple):
    """Evidence from a server, and the time at which it was had."""

    answers: dict[str, dict[str, Any]]  # by method
    tls: dict[str, Any]  # of GetTlsKey
    now: int
    collateral: Collateral

    def evidence(self, method: str) -> Attestation:
        """Return what a method answered."""
        return Attestation.from_agent_response(self.answers[method])

    def quote(self, method: str) -> Quote:
        """Return the quote in it."""
        quote = self.evidence(method).quote
        assert quote is not None
        return quote

    def verifier(self) -> Verifier:
        """Return a verifier that was given the server's root."""
        return Verifier(PKI.root_der, self.collateral, clock=self._clock)

    def _clock(self) -> datetime:
        return datetime.fromtimestamp(self.now, timezone.utc)


def _ask(server: Server) -> Answers:
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
    return Answers(answers, tls, now, PKI.collateral(now))


@pytest.fixture(scope="module")
def asked() -> Iterator[Answers]:
    """Have a server attest."""
    with running_server() as server:
        yield _ask(server)


@pytest.mark.parametrize("method", METHODS)
def test_our_verifier(asked: Answers, method: str) -> None:
    """It is valid in full: log, OS image and identity."""
    result = asked.verifier().verify(asked.evidence(method), report_data=NONCE)
    assert result.claims.event_registers == (0, 1, 2, 3)
    assert result.claims.events[-1].name == "model-loaded"
    assert result.claims.os_image_hash
    assert result.app_info is not None
    assert len(result.app_info.app_id) == 20


@pytest.mark.parametrize("method", METHODS)
def test_dcap_qvl(asked: Answers, method: str) -> None:
    """The quote is up to date for dcap-qvl, with the server's root only."""
    raw = asked.quote(method).raw
    assert python_judge(raw, asked.collateral, PKI.root_der, asked.now).status == "UpToDate"
    assert python_judge(raw, asked.collateral, None, asked.now).status == "reject"


def test_javascript_dcap_qvl(asked: Answers) -> None:
    """So it is for @phala/dcap-qvl."""
    node = node_program()
    raws = [asked.quote(method).raw for method in METHODS]
    trusting = [case(raw, asked.collateral, asked.now, PKI.root_der) for raw in raws]
    assert judge(node, trusting) == [{"status": "UpToDate", "advisories": []}] * len(raws)
    for verdict in judge(node, [case(raw, asked.collateral, asked.now, None) for raw in raws]):
        assert "error" in verdict


def test_a_certificate_of_the_server(asked: Answers) -> None:
    """GetTlsKey's certificate speaks for its key; over another key it is refused."""
    leaf = asked.tls["certificate_chain"][0]
    result = ra_tls.verify(leaf, asked.verifier())
    assert result.claims.event_registers == (3,)
    assert result.app_info is not None


# -- every change is named ---------------------------------------------------------------------


def changed(evidence: Attestation, change: Callable[[Tdx], Tdx]) -> Attestation:
    """Return the evidence with another platform's half."""
    platform = evidence.evidence.platform
    assert isinstance(platform, Tdx)
    return Attestation(Evidence(change(platform), evidence.evidence.stack))


def flipped(data: bytes, at: int) -> bytes:
    """Return the bytes with one bit changed."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def refusal(asked: Answers, evidence: Attestation) -> AttestKitError:
    """Return why the evidence is refused, once read again as a relying party would."""
    with pytest.raises(AttestKitError) as caught:
        asked.verifier().verify(evidence.to_bytes(), report_data=NONCE)
    return caught.value


@pytest.mark.parametrize("method", METHODS)
def test_every_event(asked: Answers, method: str) -> None:
    """A digest of firmware, or name or payload of a runtime event: the register is named."""
    evidence = asked.evidence(method)
    events = evidence.event_log.events
    assert len(events) > 20
    for index, event in enumerate(events):

        def alter(platform: Tdx, at: int = index) -> Tdx:
            old = platform.event_log[at]
            if old.event_type == 0x08000001:
                new = old._replace(event_payload=old.event_payload + b"\1", digest=b"")
            else:
                new = old._replace(digest=flipped(old.digest, 5))
            return platform._replace(
                event_log=(*platform.event_log[:at], new, *platform.event_log[at + 1 :])
            )

        error = refusal(asked, changed(evidence, alter))
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
def test_every_register(asked: Answers, method: str, name: str) -> None:
    """A bit of what is signed: the quote's signature is named."""
    error = refusal(
        asked,
        changed(
            asked.evidence(method),
            lambda platform: platform._replace(quote=flipped(platform.quote, FIELDS[name])),
        ),
    )
    assert isinstance(error, SignatureError)
    assert error.reason == "quote_bad_signature"


def _with_quote(quote: bytes, platform: Any) -> Any:
    return platform._replace(quote=quote)


@pytest.mark.parametrize("method", METHODS)
def test_every_certificate(asked: Answers, method: str) -> None:
    """A changed letter in the PCK certificate or its authority's: the chain is named."""
    raw = asked.quote(method).raw
    starts = [at for at in range(len(raw)) if raw.startswith(b"-----BEGIN", at)]
    assert len(starts) == 3
    for start in starts[:2]:
        at = start + 400
        letter = b"A" if raw[at : at + 1] != b"A" else b"B"
        quote = raw[:at] + letter + raw[at + 1 :]
        error = refusal(
            asked,
            changed(
                asked.evidence(method),
                partial(_with_quote, quote),
            ),
        )
        assert isinstance(error, (SignatureError, FormatError)), error
        assert "certificate" in str(error).lower()


@pytest.mark.parametrize("method", METHODS)
def test_the_configuration(asked: Answers, method: str) -> None:
    """Another image, memory size or measurement: what does not fit is named."""
    evidence = asked.evidence(method)
    config = json.loads(evidence.config)
    for name, value in (
        ("os_image_hash", "00" * 32),
        ("memory_size", config["memory_size"] + (1 << 30)),
        ("tdx_measurement", {**config["tdx_measurement"], "measurement": "AAAA"}),
    ):
        stack = evidence.evidence.stack._replace(config=json.dumps({**config, name: value}))
        error = refusal(asked, Attestation(evidence.evidence._replace(stack=stack)))
        assert any(word in str(error) for word in ("os_image_hash", "RTMR0", "measurement")), error


@pytest.mark.parametrize("method", METHODS)
def test_the_report_data_beside_the_quote(asked: Answers, method: str) -> None:
    """What the evidence says it is about is what is signed."""
    evidence = asked.evidence(method).evidence
    stack = evidence.stack._replace(report_data=bytes(64))
    error = refusal(asked, Attestation(evidence._replace(stack=stack)))
    assert getattr(error, "reason", "") == "report_data_mismatch"
