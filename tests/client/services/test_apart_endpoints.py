"""Endpoints that are proven apart: SecretVM on its attestation port, Chutes by its API."""

import gzip
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

import attestkit
from attestkit import AppraisalPolicy, Require
from attestkit._crypto.aead import chacha20_decrypt, chacha20_encrypt
from attestkit._crypto.hashes import hkdf_sha256
from attestkit._crypto.mlkem import mlkem_encapsulate
from attestkit.client import verify_proof
from attestkit.client.proofs.server_verifier import REFUSALS
from attestkit.client.services.chutes import ChutesService
from attestkit.client.services.secretvm import SecretVmService
from attestkit.ra_tls import PeerRefusedError
from tests.client.services import chutes_answers, test_secretvm
from tests.client.services.served import Answer, Request, ServedApp, served

pytest.importorskip("uvicorn")

ANSWER = b'{"id":"chatcmpl-1","choices":[]}'
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def apps(tmp_path: Path) -> Iterator[list[ServedApp]]:
    """Provide two applications with one key."""
    with served(tmp_path, 2) as found:
        yield found


def pinned(tee: Any) -> Any:
    """Return a verifier that accepts the measurements of a TEE."""
    result = tee.verify(tee.raw_quote(), report_data=None)
    return tee.verifier(policy=AppraisalPolicy.from_evidence(result))


# -- SecretVM --------------------------------------------------------------------------------------


def secretvm(apps: list[ServedApp], key: bytes | None = None) -> Any:
    """Return an endpoint for a SecretVM: the second application is its attestation port."""
    api, attestation = apps
    key = api.spki_sha256 if key is None else key
    attestation.answer = lambda _: Answer(test_secretvm.cpu(key))
    api.answer = lambda _: Answer(ANSWER, JSON)
    return attestkit.connect(
        api.url,
        service=SecretVmService(port=attestation.port),
        policy=pinned(test_secretvm.machine()),
        server_ca=api.ca,
        require=Require(freshness="key possession"),
    )


def test_secretvm_is_proven_by_its_attestation_port(apps: list[ServedApp]) -> None:
    """Requests go only over connections with the key of the evidence."""
    api, attestation = apps
    with secretvm(apps) as endpoint, endpoint.client() as client:
        assert client.get(f"{api.url}/v1/models").content == ANSWER
    assert attestation.paths == ["/cpu"]
    assert api.paths == ["/v1/models"]


def test_secretvm_with_another_key_gets_no_request(apps: list[ServedApp]) -> None:
    """Genuine evidence about another key proves nothing of this connection."""
    with secretvm(apps, bytes(32)) as endpoint, endpoint.client() as client:
        with pytest.raises(PeerRefusedError) as refused:
            client.get(f"{apps[0].url}/v1/models")
        assert refused.value.reason == "other_key"
    assert not apps[0].requests


def test_secretvm_with_another_key_is_refused_at_once_after_three(apps: list[ServedApp]) -> None:
    """Its attestation port is not contacted for each request."""
    with secretvm(apps, bytes(32)) as endpoint, endpoint.client() as client:
        reasons = []
        for _ in range(REFUSALS + 2):
            with pytest.raises(PeerRefusedError) as refused:
                client.get(f"{apps[0].url}/v1/models")
            reasons.append(refused.value.reason)
    assert reasons == ["other_key"] * REFUSALS + ["refused_recently"] * 2
    assert len(apps[1].requests) == 1 + REFUSALS


# -- Chutes ----------------------------------------------------------------------------------------


class Chutes:
    """The API of Chutes with one instance."""

    def __init__(self, app: ServedApp) -> None:
        self.app, self.instance = app, chutes_answers.INSTANCES[0]
        self.nonces = 2
        self.pools = 0
        self.used: list[str] = []
        app.answer = self.answer

    def answer(self, request: Request) -> Answer:
        """Answer a request."""
        assert request.headers["authorization"] == "Bearer key"
        if request.path.endswith("/evidence"):
            nonce = bytes.fromhex(parse_qs(request.query)["nonce"][0])
            return Answer(chutes_answers.evidence(chutes_answers.entry(self.instance, nonce)))
        if request.path.startswith("/e2e/instances/"):
            self.pools += 1
            nonces = [f"n{self.pools}-{at}" for at in range(self.nonces)]
            return Answer(chutes_answers.instances(self.instance, nonces=nonces))
        assert request.path == "/e2e/invoke"
        self.used.append(request.headers["x-e2e-nonce"])
        return Answer(self._sealed(request.body), {"Content-Type": "application/octet-stream"})

    def _sealed(self, body: bytes) -> bytes:
        secret = chutes_answers.key_of(self.instance).decapsulate(body[:1088])
        key = hkdf_sha256(secret, b"e2e-req-v1", 32, body[:16])
        plain = json.loads(gzip.decompress(chacha20_decrypt(key, body[1088:1100], body[1100:])))
        shared, encapsulated = mlkem_encapsulate(b64decode(plain["e2e_response_pk"]))
        key = hkdf_sha256(shared, b"e2e-resp-v1", 32, encapsulated[:16])
        answer = json.dumps({"prompt": plain["prompt"]}).encode()
        return encapsulated + bytes(12) + chacha20_encrypt(key, bytes(12), gzip.compress(answer))


def chutes(api: Chutes, **options: Any) -> Any:
    """Return an endpoint for the API."""
    settings: dict[str, Any] = {
        "service": ChutesService("key"),
        "model": chutes_answers.CHUTE,
        "policy": pinned(chutes_answers.machine()),
        "server_ca": api.app.ca,
        "encrypt": True,
    }
    return attestkit.connect(api.app.url, **{**settings, **options})


def test_chutes_requests_are_sealed_to_a_proven_instance(apps: list[ServedApp]) -> None:
    """Prompts are sealed to the instance; nonces are used once, and renewed."""
    api = Chutes(apps[0])
    headers = {"Authorization": "Bearer key"}
    with chutes(api) as endpoint, endpoint.client(headers=headers) as client:
        for number in range(5):
            prompt = {"prompt": f"secret {number}"}
            response = client.post(f"{api.app.url}/v1/completions", json=prompt)
            assert response.json() == prompt
            assert response.extensions["attestkit"].sealed
            assert response.extensions["attestkit"].authenticated
        assert endpoint.proof.code == "operator"
    assert len(set(api.used)) == 5
    sent = b"".join(one.body for one in api.app.requests)
    assert b"secret" not in sent
    assert b64encode(b"secret")[:8] not in sent


def test_chutes_nonces_are_not_taken_from_a_saved_proof(apps: list[ServedApp]) -> None:
    """Verifying a proof again makes none of its nonces usable again."""
    api, service = Chutes(apps[0]), ChutesService("key")
    headers = {"Authorization": "Bearer key"}
    with chutes(api, service=service) as endpoint, endpoint.client(headers=headers) as client:
        bundle, policy = endpoint.proof.bundle, pinned(chutes_answers.machine())
        for _ in range(3):
            client.post(f"{api.app.url}/v1/completions", json={"prompt": "secret"})
            verify_proof(bundle, policy=policy, service=service)
    assert api.used == ["n1-0", "n1-1", "n2-0"]


def test_chutes_nonces_are_of_one_endpoint(apps: list[ServedApp]) -> None:
    """Endpoints with one service take no nonces that were issued to another."""
    api, service = Chutes(apps[0]), ChutesService("key")
    headers = {"Authorization": "Bearer key"}
    with chutes(api, service=service) as first, chutes(api, service=service) as second:
        for endpoint in (first, second, first):
            with endpoint.client(headers=headers) as client:
                client.post(f"{api.app.url}/v1/completions", json={"prompt": "secret"})
    assert api.used == ["n1-0", "n2-0", "n1-1"]


def test_chutes_without_encryption_has_no_channel(apps: list[ServedApp]) -> None:
    """The TLS key is that of the API, which no evidence is about."""
    api = Chutes(apps[0])
    with pytest.raises(PeerRefusedError) as refused:
        chutes(api, encrypt=False)
    assert refused.value.reason == "no_channel"
    assert not api.used


def test_chutes_instance_without_genuine_evidence_gets_no_request(apps: list[ServedApp]) -> None:
    """The key that the API hands out must be in the evidence."""
    api = Chutes(apps[0])
    genuine = api.answer

    def swapped(request: Request) -> Answer:
        if request.path.startswith("/e2e/instances/"):
            other = chutes_answers.key_text(chutes_answers.INSTANCES[1])
            return Answer(chutes_answers.instances(api.instance, e2e_pubkey=other))
        return genuine(request)

    api.app.answer = swapped
    with pytest.raises(PeerRefusedError) as refused:
        chutes(api)
    assert refused.value.reason == "report_data"
    assert not api.used
