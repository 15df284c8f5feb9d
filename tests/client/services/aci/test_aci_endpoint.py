"""An endpoint for a gateway of ACI: proven on the wire, with receipts of its answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

import attestkit
from attestkit import Require
from attestkit.client.sealing.aci_e2ee import AciConstraint
from attestkit.client.sealing.protocol import SealedRequest
from attestkit.errors import ServiceError, UsageError
from attestkit.ra_tls import PeerRefusedError
from tests.client.sealing.test_aci_e2ee import Server
from tests.client.services.aci import aci_answers
from tests.client.services.aci.aci_answers import encoded, keyset, pinned_verifier, report
from tests.client.services.served import Answer, Request, ServedApp, served
from tests.raising import raises

pytest.importorskip("uvicorn")

RESPONSE = b'{"id":"chatcmpl-1","choices":[]}'
REPORT = "/v1/aci/attestation"
PROMPT = "/v1/chat/completions"


class Gateway:
    """A gateway that answers reports, prompts and receipts."""

    def __init__(self, app: ServedApp) -> None:
        app.answer = self.answer
        self.app = app
        self.keys = self.keyset()
        self.receipts: dict[str, dict[str, Any]] = {}
        self.response = RESPONSE

    def keyset(self, **changes: Any) -> dict[str, Any]:
        """Return a keyset with the key of the connection."""
        tls = [{"spki_sha256": self.app.spki_sha256.hex(), "domain": "127.0.0.1"}]
        return keyset(**{"tls_public_keys": tls, **changes})

    def answer(self, request: Request) -> Answer:
        """Answer a request."""
        digest = aci_answers.digest_of(self.keys)
        if request.path == REPORT:
            [nonce] = parse_qs(request.query)["nonce"]
            return Answer(encoded(report(self.keys, bytes.fromhex(nonce))))
        if request.path.startswith("/v1/aci/receipts/"):
            found = self.receipts.get(request.path.rpartition("/")[2])
            return Answer(b"{}", status=404) if found is None else Answer(encoded(found))
        received = request.body
        if "x-e2ee-version" in request.headers:
            [key] = self.keys["e2ee_public_keys"]
            if request.headers["x-model-pub-key"] != key["public_key"]:
                problem = b'{"error":{"type":"e2ee_model_key_mismatch"}}'
                headers = {"Content-Type": "application/json", "X-ACI-Keyset-Digest": digest}
                return Answer(problem, headers, 400)
            received = self.restored(request)
        made = aci_answers.receipt(received, RESPONSE, workload_keyset_digest=digest)
        self.receipts["rcpt-1"] = made
        headers = {"X-Receipt-Id": "rcpt-1", "X-ACI-Keyset-Digest": digest}
        return Answer(self.response, {"Content-Type": "application/json", **headers})

    def restored(self, request: Request) -> bytes:
        """Return the body of a sealed request, with the one message opened."""
        body = json.loads(request.body)
        names = {name.title().replace("E2Ee", "E2EE"): x for name, x in request.headers.items()}
        sealed = SealedRequest("POST", PROMPT, list(names.items()), b"", AciConstraint())
        [message] = body["messages"]
        opened = Server("x25519").open(sealed, "messages.0.content", message["content"])
        message["content"] = opened
        return json.dumps(body, separators=(",", ":")).encode()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Provide a gateway over TLS."""
    with served(tmp_path) as [app]:
        yield Gateway(app)


def connect(gateway: Gateway, **options: Any) -> Any:
    """Return an endpoint for the gateway."""
    settings = {"policy": pinned_verifier(), "service": "aci", "server_ca": gateway.app.ca}
    settings["require"] = Require(channel="gateway", response_signatures=True)
    return attestkit.connect(gateway.app.url, **{**settings, **options})


def test_answers_are_checked_by_their_receipts(gateway: Gateway) -> None:
    """Requests demand a verified machine; a receipt is of the bytes on the wire."""
    url = gateway.app.url + PROMPT
    with connect(gateway) as endpoint, endpoint.client() as client:
        assert endpoint.proof.freshness == "nonce"
        response = client.post(url, json={"model": "m"})
        assert response.content == RESPONSE
        assert not response.extensions["attestkit"].sealed
        endpoint.verify(response)
        gateway.response = RESPONSE.replace(b"[]", b"[1]")
        changed = client.post(url, json={"model": "m"})
        with raises(ServiceError, "signature"):
            endpoint.verify(changed)
    [prompt, *_] = [one for one in gateway.app.requests if one.path == PROMPT]
    assert json.loads(prompt.body) == {"model": "m", "provider": {"aci_verified": True}}


def test_sealed_requests_have_receipts_of_what_the_server_restored(gateway: Gateway) -> None:
    """A prompt is sealed to the keyset's key; its receipt is about the restored body."""
    prompt = {"model": "m", "messages": [{"role": "user", "content": "secret"}]}
    with connect(gateway, encrypt=True) as endpoint, endpoint.client() as client:
        response = client.post(gateway.app.url + PROMPT, json=prompt)
        assert response.json() == json.loads(RESPONSE)
        assert response.extensions["attestkit"].sealed
        endpoint.verify("rcpt-1")
    assert all(b"secret" not in one.body for one in gateway.app.requests)


def test_changed_key_of_encryption_is_proven_and_sealed_to(gateway: Gateway) -> None:
    """A server that has another key by now is proven again, and the request sealed anew."""
    prompt = {"model": "m", "messages": [{"role": "user", "content": "secret"}]}
    keys = gateway.keys
    old = {**keys["e2ee_public_keys"][0], "public_key": "09" + "00" * 31}
    gateway.keys = gateway.keyset(e2ee_public_keys=[old])
    with connect(gateway, encrypt=True) as endpoint, endpoint.client() as client:
        gateway.keys = keys
        response = client.post(gateway.app.url + PROMPT, json=prompt)
        assert response.json() == json.loads(RESPONSE)
        endpoint.verify("rcpt-1")
    paths = [path for path in gateway.app.paths if path in (REPORT, PROMPT)]
    assert paths[1:4] == [PROMPT, REPORT, PROMPT]


@pytest.mark.parametrize("encrypt", [False, True])
def test_changed_keyset_is_proven_before_the_next_request(gateway: Gateway, encrypt: bool) -> None:
    """An answer that names another keyset ends the proof, also if it has the key sealed to.

    The next request waits for a new proof.
    """
    url = gateway.app.url + PROMPT
    prompt = {"model": "m", "messages": [{"role": "user", "content": "secret"}]}
    with connect(gateway, encrypt=encrypt) as endpoint, endpoint.client() as client:
        client.post(url, json=prompt)
        proofs = gateway.app.paths.count(REPORT)
        gateway.keys = gateway.keyset(not_after=2_000_000_001)
        client.post(url, json=prompt)
        assert gateway.app.paths.count(REPORT) == proofs
        response = client.post(url, json=prompt)
        assert gateway.app.paths[-2:] == [REPORT, PROMPT]
        endpoint.verify(response)
        client.post(url, json=prompt)
        assert gateway.app.paths.count(REPORT) == proofs + 1


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("encrypt", [False, True])
def test_late_answer_ends_no_proof_of_newer_keys(
    gateway: Gateway, encrypt: bool, again: bool
) -> None:
    """Of several answers under ended proofs, only the first has the server proven again."""
    prompt = {"model": "m", "messages": [{"role": "user", "content": "secret"}]}
    with connect(gateway, encrypt=encrypt) as endpoint:
        made = [endpoint._changes_requests()() for _ in range(2)]
        kind = ("Content-Type", "application/json")
        openers = [one.seal("POST", PROMPT, [kind], encoded(prompt)).opener for one in made]
        if again:
            endpoint.prove()  # of the same keyset
        gateway.keys = gateway.keyset(not_after=2_000_000_001)
        headers = [("X-ACI-Keyset-Digest", aci_answers.digest_of(gateway.keys)), kind]
        openers[0].start(200, headers)
        with raises(UsageError, "not_ready"):
            _ = endpoint.proof
        proof = endpoint.prove()
        openers[1].start(200, headers)
        assert endpoint.proof is proof


def test_gateway_ends_the_channel(gateway: Gateway) -> None:
    """The model's own machine is required by default, and a gateway is refused."""
    with pytest.raises(PeerRefusedError) as refused:
        connect(gateway, require=Require())
    assert refused.value.reason == "ends_at_gateway"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tls_public_keys": [{"spki_sha256": "00" * 32}]}, "other_key"),
        ({"not_after": 1_700_000_000}, "document_expired"),
    ],
)
def test_refused_gateway_gets_no_request(
    gateway: Gateway, changes: dict[str, Any], reason: str
) -> None:
    """A relay of genuine evidence, and an expired keyset, are refused before any request."""
    gateway.keys = gateway.keyset(**changes)
    with pytest.raises(PeerRefusedError) as refused:
        connect(gateway)
    assert refused.value.reason == reason
    assert set(gateway.app.paths) == {REPORT}
