"""Field encryption of ACI: a server in the test opens requests and seals answers."""

import json
import secrets
from collections.abc import Iterable
from contextlib import suppress
from copy import copy
from typing import Any, Final

import pytest

from attestkit._crypto.aead import aes_gcm_decrypt, aes_gcm_encrypt
from attestkit._crypto.ecdsa import k256_public_key
from attestkit._crypto.ed25519 import x25519, x25519_public_key
from attestkit._crypto.hashes import hkdf_sha256, sha256
from attestkit._crypto.k256_agreement import k256_shared_secret
from attestkit.client.sealing.aci_e2ee import (
    ACI_X25519,
    AciAssociatedData,
    AciConstraint,
    AciOpener,
    AciSealing,
)
from attestkit.client.sealing.fields import RequestContext
from attestkit.client.sealing.protocol import MAX_PROBLEM, SealedRequest, SealingKeyError
from attestkit.errors import ServiceError
from tests.raising import raises
from tests.runner.cases import every_case

SECRET: Final = b"\3" * 32
SUITES: Final = ("x25519", "secp256k1")
CHAT: Final = "/v1/chat/completions"
NOW: Final = 1_750_000_000
JSON: Final = [("Content-Type", "application/json")]


class Server:
    """A server with a key of one suite; its code shares none with the client's sealing."""

    def __init__(self, curve: str) -> None:
        self.curve, self.size = curve, 32 if curve == "x25519" else 65
        self.algo = f"{curve}-aes-256-gcm-hkdf-sha256"
        self.public_key = self.public(SECRET)

    def public(self, secret: bytes) -> bytes:
        """Return the public key of a secret."""
        if self.curve == "x25519":
            return x25519_public_key(secret)
        return k256_public_key(secret, compressed=False)

    def key(self, secret: bytes, public: bytes) -> bytes:
        """Return the key of the cipher."""
        agree = x25519 if self.curve == "x25519" else k256_shared_secret
        return hkdf_sha256(agree(secret, public), f"aci.e2ee.v2.{self.curve}".encode(), 32, b"")

    def associated(self, sealed: SealedRequest, field: str, **more: str) -> bytes:
        """Return the associated data, as the specification writes them."""
        headers = dict(sealed.headers)
        bound = {
            "algo": self.algo,
            "field": field,
            **more,
            "model": "m",
            "nonce": headers["X-E2EE-Nonce"],
            "purpose": f"aci.e2ee.{'response' if more else 'request'}.v2",
            "ts": int(headers["X-E2EE-Timestamp"]),
        }
        return json.dumps(bound, separators=(",", ":"), ensure_ascii=False).encode()

    def open(self, sealed: SealedRequest, field: str, text: str) -> str:
        """Open a text of a request."""
        raw, at = bytes.fromhex(text), self.size
        key = self.key(SECRET, raw[:at])
        associated = self.associated(sealed, field)
        return aes_gcm_decrypt(key, raw[at : at + 12], raw[at + 12 :], associated).decode()

    def seal(self, sealed: SealedRequest, field: str, text: str, answer: str = "c-1") -> str:
        """Seal a text for the client."""
        secret, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
        client = bytes.fromhex(dict(sealed.headers)["X-Client-Pub-Key"])
        associated = self.associated(sealed, field, id=answer)
        cipher = aes_gcm_encrypt(self.key(secret, client), nonce, text.encode(), associated)
        return (self.public(secret) + nonce + cipher).hex()


@pytest.fixture(params=SUITES)
def server(request: pytest.FixtureRequest) -> Server:
    """A server of each suite."""
    return Server(request.param)


def seal(server: Server, body: dict[str, Any], target: str = CHAT, **options: Any) -> SealedRequest:
    """Seal a request."""
    sealing = AciSealing(server.public_key, now=lambda: NOW + 0.5, **options)
    headers = [*JSON, ("X-Signing-Algo", "ecdsa"), ("X-E2EE-Nonce", "theirs")]
    return sealing.seal("POST", target, headers, json.dumps(body).encode())


def chat(*contents: object) -> dict[str, Any]:
    """Return a request with messages."""
    return {"model": "m", "messages": [{"role": "user", "content": one} for one in contents]}


def test_server_opens_contents(server: Server) -> None:
    """Contents are sealed in place; lists of parts as compact JSON."""
    parts = [{"type": "image_url", "image_url": {"url": "data:é"}}]
    sealed = seal(server, {**chat("secret é", parts, ""), "temperature": 0.5})
    body = json.loads(sealed.body)
    texts = [one["content"] for one in body["messages"]]
    opened = [server.open(sealed, f"messages.{n}.content", text) for n, text in enumerate(texts)]
    assert opened[0] == "secret é"
    assert json.loads(opened[1]) == parts
    assert opened[1] == json.dumps(parts, ensure_ascii=False, separators=(",", ":"))
    assert opened[2] == ""
    assert body["temperature"] == 0.5
    assert body["provider"] == {"aci_verified": True}


def test_headers_of_the_protocol(server: Server) -> None:
    """Five headers, with a new key and nonce for each request, and none of another protocol."""
    first, second = (dict(seal(server, chat("a")).headers) for _ in range(2))
    assert first["X-E2EE-Version"] == "2"
    assert first["X-Model-Pub-Key"] == server.public_key.hex()
    assert first["X-E2EE-Timestamp"] == str(NOW)
    assert len(bytes.fromhex(first["X-E2EE-Nonce"])) == 32
    for name in ("X-E2EE-Nonce", "X-Client-Pub-Key"):
        assert first[name] != second[name]
    assert "X-Signing-Algo" not in first


@pytest.mark.parametrize(
    ("target", "name", "value", "fields"),
    [
        ("/v1/completions", "prompt", "a", ["prompt"]),
        ("/v1/completions", "prompt", ["a", "b"], ["prompt.0", "prompt.1"]),
        ("/v1/embeddings", "input", "a", ["input"]),
        ("/v1/embeddings", "input", ["a", "b"], ["input.0", "input.1"]),
    ],
)
def test_prompts_and_inputs(
    server: Server, target: str, name: str, value: Any, fields: list[str]
) -> None:
    """Texts of other endpoints are sealed, each under its own path."""
    sealed = seal(server, {"model": "m", name: value}, target)
    found = json.loads(sealed.body)[name]
    texts = [found] if isinstance(found, str) else found
    assert [server.open(sealed, *pair) for pair in zip(fields, texts, strict=True)] == list(value)


def test_text_that_looks_like_a_list_stays_text(server: Server) -> None:
    """The server restores a JSON array as a list, so such a text becomes a part."""
    sealed = seal(server, chat("[1, 2]", "[no array", "[" * 5000))
    texts = [one["content"] for one in json.loads(sealed.body)["messages"]]
    opened = [server.open(sealed, f"messages.{n}.content", text) for n, text in enumerate(texts)]
    assert json.loads(opened[0]) == [{"type": "text", "text": "[1, 2]"}]
    assert opened[1:] == ["[no array", "[" * 5000]


@every_case(
    ("target", "body"),
    [
        (CHAT, {"messages": []}),
        (CHAT, {"model": 1, "messages": []}),
        (CHAT, {**chat("a"), "user": "some text"}),
        (CHAT, {**chat("a"), "tools": [{"type": "function", "function": {"name": "f"}}]}),
        (CHAT, {**chat("a"), "logprobs": True}),
        (CHAT, chat({"text": "a"})),
        (CHAT, {"model": "m", "messages": [{"role": "user", "content": "a", "name": "a b"}]}),
        ("/v1/responses", {"model": "m", "input": "a"}),
        ("/v1/chat/completions?a=b", chat("a")),
    ],
)
def test_text_that_would_travel_open_is_refused(target: str, body: dict[str, Any]) -> None:
    """Texts that the protocol does not seal are not sent."""
    with raises(ServiceError, "sealing"):
        seal(Server("x25519"), body, target)


@pytest.mark.parametrize("body", [b"[]", b"no", b'{"model":"m","model":"m"}'])
def test_body_that_is_no_object_is_refused(body: bytes) -> None:
    """Only JSON objects have fields."""
    sealing = AciSealing(Server("x25519").public_key)
    with raises(ServiceError, "sealing"):
        sealing.seal("POST", CHAT, JSON, body)


def test_another_model_and_invalid_keys_are_refused() -> None:
    """A proof may be about one model; a key has to be one."""
    with raises(ServiceError, "sealing"):
        seal(Server("x25519"), chat("a"), model="other")
    for key in (b"", b"\4" + bytes(64)):
        with raises(ServiceError, "sealing"):
            AciSealing(key)


def test_restored_body_is_noted(server: Server) -> None:
    """A receipt has the hash of the compact body that the server restores."""
    noted: list[tuple[bytes, bytes]] = []
    sealed = seal(server, chat("é"), note=lambda *pair: noted.append(pair))
    restored = {**chat("é"), "provider": {"aci_verified": True}}
    text = json.dumps(restored, ensure_ascii=False, separators=(",", ":"))
    assert noted == [(sha256(sealed.body), sha256(text.encode()))]


# -- answers ---------------------------------------------------------------------------------------


def read(sealed: SealedRequest, data: bytes, kind: str = "application/json") -> bytes:
    """Open an answer."""
    sealed.opener.start(200, [("Content-Type", kind)])
    return sealed.opener.feed(data) + sealed.opener.finish()


def answer(server: Server, sealed: SealedRequest, **changes: Any) -> dict[str, Any]:
    """Return a sealed answer with two choices in another order."""
    choices = []
    for index in (1, 0):
        field = f"choices.{index}.message.content"
        content = server.seal(sealed, field, f"answer {index}")
        message = {"role": "assistant", "content": content}
        choices.append({"index": index, "message": message, "finish_reason": "stop"})
    return {
        "id": "c-1",
        "object": "chat.completion",
        "model": "other",
        "choices": choices,
    } | changes


def test_answer_is_opened_by_the_stated_index(server: Server) -> None:
    """Associated data have the index of a choice, not its position."""
    sealed = seal(server, chat("a"))
    found = json.loads(read(sealed, json.dumps(answer(server, sealed)).encode()))
    assert [one["message"]["content"] for one in found["choices"]] == ["answer 1", "answer 0"]


def test_streamed_answer(server: Server) -> None:
    """Each event is sealed under its own path."""
    sealed = seal(server, {**chat("a"), "stream": True})

    def event(text: str) -> bytes:
        content = server.seal(sealed, "choices.0.delta.content", text)
        found = {"id": "c-1", "choices": [{"index": 0, "delta": {"content": content}}]}
        return f"data: {json.dumps(found)}\n\n".encode()

    stream = event("a") + event("b") + b"data: [DONE]\n\n"
    found = read(sealed, stream, "text/event-stream")
    assert b'"content":"a"' in found
    assert b'"content":"b"' in found
    assert found.endswith(b"data: [DONE]\n\n")
    with raises(ServiceError, "sealing"):
        read(seal(server, chat("a")), stream, "text/event-stream")


def test_embeddings_are_opened_as_json(server: Server) -> None:
    """A sealed embedding is the JSON of its value."""
    sealed = seal(server, {"model": "m", "input": "a"}, "/v1/embeddings")
    vector = server.seal(sealed, "data.0.embedding", "[0.5,1]", "")
    data = {"object": "list", "data": [{"index": 0, "embedding": vector}]}
    assert json.loads(read(sealed, json.dumps(data).encode()))["data"][0]["embedding"] == [0.5, 1]


def altered(server: Server, sealed: SealedRequest) -> Iterable[dict[str, Any]]:
    """Yield answers that are not to this request, or not as they were sealed."""
    genuine = answer(server, sealed)
    yield {**genuine, "id": "c-2"}
    yield {**genuine, "id": 1}
    yield {**genuine, "choices": [{**genuine["choices"][0], "index": 0}]}
    yield {**genuine, "choices": [{**genuine["choices"][0], "index": "1"}]}
    yield {**genuine, "choices": [{**genuine["choices"][0], "index": 1 << 60}]}
    message = genuine["choices"][0]["message"]
    for change in (
        {"content": "open"},
        {"content": message["content"][:-2]},
        {"refusal": "some open text"},
        {"tool_calls": [{"function": {"name": "f"}}]},
        {"reasoning": message["content"]},
    ):
        yield {**genuine, "choices": [{"index": 1, "message": {**message, **change}}]}


def test_altered_answers_are_refused(server: Server) -> None:
    """Moved, changed, open and additional texts are refused."""
    sealed = seal(server, chat("a"))
    for one in altered(server, sealed):
        assert isinstance(sealed.opener, AciOpener)
        fresh = copy(sealed.opener._fields)
        fresh._body = bytearray()  # type: ignore[attr-defined]
        with raises(ServiceError, "sealing"):
            read(sealed._replace(opener=AciOpener(fresh)), json.dumps(one).encode())


@pytest.mark.parametrize("step", [1, 1000])
def test_key_that_the_server_does_not_have(step: int) -> None:
    """The server says so with an error, which is read before the caller gets the answer."""
    problem = b'{"error":{"message":"x","type":"e2ee_model_key_mismatch","code":null}}'
    opener: Any = seal(Server("x25519"), chat("a")).opener
    assert opener.start(400, JSON) == JSON
    assert opener.read_at_once
    assert not opener.authenticated
    parts = [opener.feed(problem[at : at + step]) for at in range(0, len(problem), step)]
    assert b"".join(parts) == problem
    with pytest.raises(SealingKeyError):
        opener.finish()


@every_case(
    ("status", "body"),
    [
        (401, b'{"error":{"type":"e2ee_model_key_mismatch"}}'),
        (400, b'{"error":{"type":"e2ee_replay_detected"}}'),
        (400, b'{"error":"e2ee_model_key_mismatch"}'),
        (400, b"text"),
        (400, b'{"error":{"type":"e2ee_model_key_mismatch"}}'.ljust(MAX_PROBLEM + 1)),
    ],
)
def test_other_errors_are_handed_on(status: int, body: bytes) -> None:
    """Any other error is the caller's."""
    opener: Any = seal(Server("x25519"), chat("a")).opener
    opener.start(status, JSON)
    assert opener.read_at_once is (status == 400)
    assert opener.feed(body) + opener.finish() == body


@every_case(
    ("status", "problem", "calls"),
    [
        (200, b"", 1),
        (503, b"{}", 1),
        (400, b'{"error":{"type":"e2ee_replay_detected"}}', 1),
        (400, b'{"error":{"type":"e2ee_model_key_mismatch"}}', 0),
    ],
)
def test_answer_that_names_another_keyset(status: int, problem: bytes, calls: int) -> None:
    """It ends the proof, except where the error of an unknown key does so."""
    changes: list[int] = []
    constraint = AciConstraint("sha256:aa", lambda: changes.append(1))
    for digest, expected in (("aa", 0), ("bb", calls)):
        opener = seal(Server("x25519"), chat("a"), constraint=constraint).opener
        opener.start(status, [*JSON, ("X-ACI-Keyset-Digest", f"sha256:{digest}")])
        opener.feed(problem)
        with suppress(ServiceError):
            opener.finish()
        assert len(changes) == expected


def test_published_associated_data() -> None:
    """Associated data are byte for byte those of the protocol's published vectors."""
    nonce = bytes(range(32)).hex()
    context = RequestContext(ACI_X25519.algorithm, "demo-model", nonce, NOW)
    data = AciAssociatedData()
    algo = '"algo":"x25519-aes-256-gcm-hkdf-sha256"'
    request = data.of_request(context, ("messages", 0, "content"))
    assert request.decode() == (
        f'{{{algo},"field":"messages.0.content","model":"demo-model","nonce":"{nonce}",'
        f'"purpose":"aci.e2ee.request.v2","ts":{NOW}}}'
    )
    whole = {"id": "chatcmpl-123", "choices": [{"message": {}}]}
    response = data.of_answer(context, whole, ("choices", 0, "message", "content"))
    assert response.decode() == (
        f'{{{algo},"field":"choices.0.message.content","id":"chatcmpl-123","model":"demo-model",'
        f'"nonce":"{nonce}","purpose":"aci.e2ee.response.v2","ts":{NOW}}}'
    )
