"""An endpoint for NEAR AI: proven on the wire, fields sealed to the model, answers signed."""

import json
from collections.abc import Iterator
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import httpx
import pytest
import requests
from nacl.signing import SigningKey

import attestkit
from attestkit import Require
from attestkit.client.services.service import Machine
from attestkit.errors import ServiceError
from attestkit.ra_tls import PeerRefusedError
from attestkit.verifier import AppraisalPolicy, ReferenceValues
from tests.client.sealing.field_server import FieldServer, event
from tests.client.services.served import Answer, Request, ServedApp, served
from tests.client.services.vllm.simulated_reports import NONCE, report, td, verified
from tests.raising import raises
from tests.verifier.platforms import intel

pytest.importorskip("uvicorn")

SEED: Final = b"\x31" * 32
MODEL: Final = "org/model"
REPORT: Final = "/v1/attestation/report"
CHAT: Final = "/v1/chat/completions"


class Gateway:
    """A gateway with a model behind it, which opens requests and seals and signs answers."""

    def __init__(self, app: ServedApp) -> None:
        app.answer = self.answer
        self.app = app
        self.key = SigningKey(SEED)
        self.model = FieldServer("ed25519", "xchacha", SEED)
        self.fingerprint = app.spki_sha256
        self.nonce: bytes | None = None  # in place of the client's
        self.models = 1
        self.aliasing: list[str | None] = []
        self.prompts: list[str] = []
        self.signatures: dict[str, str] = {}

    def answer(self, request: Request) -> Answer:
        """Answer a request."""
        if request.path == REPORT:
            [nonce] = parse_qs(request.query)["nonce"]
            return _json(self.report(self.nonce or bytes.fromhex(nonce)))
        if request.path.startswith("/v1/signature/"):
            text = self.signatures.get(request.path.rpartition("/")[2])
            if text is None:
                return Answer(b"{}", status=404)
            signature = self.key.sign(text.encode()).signature.hex()
            return _json({"text": text, "signature": signature, "signing_algo": "ed25519"})
        answered = self.chat(request)
        hashes = (sha256(data).hexdigest() for data in (request.body, answered.body))
        self.signatures["chat-1"] = ":".join((MODEL, *hashes))
        return answered

    def report(self, nonce: bytes) -> dict[str, Any]:
        """Return the reports of the gateway and the model."""
        gateway = report(nonce, algorithm="ed25519", fingerprint=self.fingerprint, gpus=False)
        model = report(nonce, algorithm="ed25519", fingerprint=bytes(32), key=self.key, gpus=False)
        return {"gateway_attestation": gateway, "model_attestations": [model] * self.models}

    def chat(self, request: Request) -> Answer:
        """Answer a prompt, sealed if it is."""
        body = json.loads(request.body)
        self.aliasing.append(request.headers.get("x-no-aliasing"))
        client = request.headers.get("x-client-pub-key")
        content = body["messages"][0]["content"]
        reply = f"reply to {self.model.open(content) if client else content}"
        self.prompts.append(content)
        text = self.model.seal(client, reply) if client else reply
        if not body.get("stream"):
            return _json({"id": "chat-1", "choices": [{"message": {"content": text}}]})
        first = {"id": "chat-1", "choices": [{"delta": {"content": text}}]}
        stream = event(first) + b"data: [DONE]\n\n"
        return Answer(stream, {"Content-Type": "text/event-stream"})


def _json(document: object) -> Answer:
    return Answer(json.dumps(document).encode(), {"Content-Type": "application/json"})


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Provide a gateway over TLS."""
    with served(tmp_path) as [app]:
        yield Gateway(app)


def pinned() -> AppraisalPolicy:
    """Return a policy that accepts the simulated app alone."""
    return AppraisalPolicy.from_evidence(verified(read_evidence()))


def read_evidence() -> Machine:
    """Return a machine of the simulated app."""
    return Machine("model", td(bytes(64)), bytes(64))


def connect(gateway: Gateway, **options: Any) -> Any:
    """Return an endpoint for the gateway."""
    now = datetime.now(timezone.utc).timestamp()
    settings: dict[str, Any] = {"policy": pinned(), "service": "near-ai"}
    settings |= {"trust_anchor": intel.PKI.root_der, "collateral": intel.PKI.collateral(now)}
    settings |= {"server_ca": gateway.app.ca}
    settings |= {"model": MODEL, "encrypt": True}
    return attestkit.connect(gateway.app.url, **{**settings, **options})


def test_proof_names_roles_of_cautions_and_of_policies(gateway: Gateway, tmp_path: Path) -> None:
    """Of several machines, a proof says which a caution is about, and what pins each program."""
    rules = pinned().reference_values.rules
    without_tables = {name: values for name, values in rules.items() if name != "rtmr0"}
    loose = pinned().replace(reference_values=ReferenceValues(**without_tables))
    path = tmp_path / "models.toml"
    path.write_text(loose.to_toml())
    with connect(gateway, policy={"gateway": pinned(), "*": path}) as endpoint:
        proof = endpoint.proof
    model = next(one for one in proof.machines if one.role != "gateway")
    [caution] = [step.text for step in model.result.steps if step.check == "acpi_tables"]
    [listed] = [text for text in proof.not_proven if caution in text]
    assert listed == f"{model.role}: {caution}"
    [first, *others] = [text for text in str(proof).splitlines() if text.startswith("  code ")]
    assert "as the policy pins it" in first
    assert all(f"as pinned in {path}" in text for text in others)
    named = f"gateway: as the policy pins it; {model.role}: as pinned in {path}"
    assert proof.policy == proof.to_dict()["policy"] == named
    with connect(gateway, policy=path) as endpoint:
        proof = endpoint.proof
    assert f"gateway, {model.role}: {caution}" in proof.not_proven
    assert proof.policy == f"as pinned in {path}"


def prompt(**more: Any) -> dict[str, Any]:
    """Return a request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "a secret"}], **more}


def test_fields_are_sealed_to_the_model_behind_the_gateway(gateway: Gateway) -> None:
    """The gateway sees only sealed text, and the answer's signature is of the bytes on the wire."""
    url = gateway.app.url + CHAT
    options = {"require": Require(response_signatures=True)}
    with connect(gateway, **options) as endpoint, endpoint.client() as client:
        assert [binding.kind for binding in endpoint.proof.bindings] == ["tls-spki", "fields"]
        assert any("model, roles, ids" in limit for limit in endpoint.proof.not_proven)
        response = client.post(url, json=prompt())
        found = response.json()["choices"][0]["message"]["content"]
        assert found == "reply to a secret"
        assert response.extensions["attestkit"].sealed
        endpoint.verify(response)
        gateway.signatures["chat-1"] = f"{MODEL}:{bytes(32).hex()}:{bytes(32).hex()}"
        with raises(ServiceError, "signature"):
            endpoint.verify(response)
    assert all("secret" not in text for text in gateway.prompts)


def test_streams_are_opened_as_they_arrive(gateway: Gateway) -> None:
    """Each event is opened, and the stream's end is required."""
    url = gateway.app.url + CHAT
    with connect(gateway) as endpoint, endpoint.client() as client:
        response = client.post(url, json=prompt(stream=True))
        first = json.loads(response.text.split("\n\n")[0].removeprefix("data: "))
        assert first["choices"][0]["delta"]["content"] == "reply to a secret"
        with raises(ServiceError, "sealing"):
            client.post(url, json=prompt(user="Ann"))
    assert len(gateway.prompts) == 1


def test_without_sealing_the_channel_ends_at_the_gateway(gateway: Gateway) -> None:
    """The default requirement is a channel to the model; a gateway must be accepted by name."""
    with pytest.raises(PeerRefusedError) as refused:
        connect(gateway, encrypt=False)
    assert refused.value.reason == "ends_at_gateway"
    url = gateway.app.url + CHAT
    options: dict[str, Any] = {"encrypt": False, "require": Require(channel="gateway")}
    with connect(gateway, **options) as endpoint, endpoint.client() as client:
        response = client.post(url, json=prompt())
        assert response.json()["choices"][0]["message"]["content"] == "reply to a secret"


def test_every_way_of_requests_forbids_another_model(gateway: Gateway) -> None:
    """Clients, transports and adapters add the header, unless the request has it."""
    options: dict[str, Any] = {"encrypt": False, "require": Require(channel="gateway")}
    url = gateway.app.url + CHAT
    with connect(gateway, **options) as endpoint:
        with endpoint.client(http="httpx") as client:
            client.post(url, json=prompt())
            client.post(url, json=prompt(), headers={"x-no-aliasing": "false"})
        with httpx.Client(transport=endpoint.transport(http="httpx")) as client:
            client.post(url, json=prompt())
        with endpoint.requests_session() as session:
            session.post(url, json=prompt())
        with requests.Session() as session:
            session.mount("https://", endpoint.adapter())
            session.post(url, json=prompt())
    assert gateway.aliasing == ["true", "false", "true", "true", "true"]


@pytest.mark.parametrize("fault", ["relay", "stale", "no model"])
def test_refused_gateway_gets_no_request(gateway: Gateway, fault: str) -> None:
    """Genuine evidence of another key, an old answer, and a model without evidence."""
    if fault == "relay":
        gateway.fingerprint = bytes(32)
    elif fault == "stale":
        gateway.nonce = NONCE
    else:
        gateway.models = 0
    reasons = {"relay": "other_key", "stale": "nonce_echo", "no model": "ends_at_gateway"}
    with pytest.raises(PeerRefusedError) as refused:
        connect(gateway)
    assert refused.value.reason == reasons[fault]
    assert set(gateway.app.paths) == {REPORT}
