"""Field encryption against a server written with other libraries, in both directions."""

import json
from collections.abc import Callable
from typing import Any, Final

import pytest

from attestkit.client.sealing.event_stream import MAX_EVENT
from attestkit.client.sealing.field_protocols import (
    ECDSA_V1,
    ED25519_V1,
    NEAR_ECDSA,
    NEAR_ED25519,
    PHALA_ECDSA,
    PHALA_ED25519,
    VENICE,
    PhalaAssociatedData,
)
from attestkit.client.sealing.fields import MAX_BODY, FieldProtocol, FieldSealing, RequestContext
from attestkit.client.sealing.protocol import Headers, SealedRequest
from attestkit.errors import ServiceError
from tests.client.sealing.field_server import FieldServer, at, event, montgomery
from tests.raising import raises

CHAT: Final = "/v1/chat/completions"
JSON: Final[Headers] = [("Content-Type", "application/json"), ("Authorization", "Bearer key")]
EVENTS: Final[Headers] = [("Content-Type", "text/event-stream; charset=utf-8")]
NOW: Final = 1_790_000_000

CIPHERS: Final[dict[str, tuple[FieldProtocol, str]]] = {
    "ed25519 version 1": (ED25519_V1, "box"),
    "ecdsa": (ECDSA_V1, "gcm"),
    "Venice": (VENICE, "gcm"),
    "NEAR ed25519": (NEAR_ED25519, "xchacha"),
    "NEAR ecdsa": (NEAR_ECDSA, "gcm"),
    "Phala ed25519": (PHALA_ED25519, "gcm"),
    "Phala ecdsa": (PHALA_ECDSA, "gcm"),
}


class Talk:
    """A client and a server of one protocol."""

    def __init__(self, name: str) -> None:
        self.protocol, cipher = CIPHERS[name]
        self.server = FieldServer(self.protocol.algorithm, cipher)
        self.is_phala = name.startswith("Phala")
        self.is_near = name.startswith("NEAR")

    def sealing(self, **options: Any) -> FieldSealing:
        """Return what seals to the server's key."""
        return FieldSealing(self.protocol, self.server.public, now=lambda: NOW, **options)

    def seal(self, body: object, target: str = CHAT, **options: Any) -> SealedRequest:
        """Seal a request."""
        data = json.dumps(body).encode()
        return self.sealing(**options).seal("POST", target, JSON, data)

    def bound(self, sealed: SealedRequest, *parts: object) -> bytes:
        """Return the associated data of Phala's version 2; of the others none."""
        if not self.is_phala:
            return b""
        found = header(sealed, "x-e2ee-nonce"), header(sealed, "x-e2ee-timestamp")
        head, *rest = map(str, parts)
        start = f"v2|{head}|algo={self.protocol.algorithm}|{'|'.join(rest)}"
        return f"{start}|n={found[0]}|ts={found[1]}".encode()

    def client_key(self, sealed: SealedRequest) -> str:
        """Return the key to which answers are sealed."""
        prefix = "x-venice-tee" if self.protocol is VENICE else "x"
        return header(sealed, f"{prefix}-client-pub-key")

    def answer(self, sealed: SealedRequest, part: str, text: str, **more: Any) -> dict[str, Any]:
        """Return an answer, or an event of one, with a sealed text."""
        places = ("resp", "model=served", "id=chat-1", "choice=0", "field=content")
        content = self.server.seal(self.client_key(sealed), text, self.bound(sealed, *places))
        choice = {"index": 0, part: {"role": "assistant", "content": content}}
        return {"id": "chat-1", "model": "served", "choices": [choice], **more}


def header(sealed: SealedRequest, name: str) -> str:
    """Return the only header of this name."""
    (found,) = [value for key, value in sealed.headers if key.lower() == name]
    return found


def refused(call: Callable[[], object], part: str = "") -> None:
    """Check that a call is refused for sealing."""
    with raises(ServiceError, "sealing", part=part):
        call()


every_protocol = pytest.mark.parametrize("name", CIPHERS)


def message(content: object, **more: object) -> dict[str, Any]:
    """Return a request of one message."""
    return {"model": "org/m", "messages": [{"role": "user", "content": content}], **more}


# -- requests --------------------------------------------------------------------------------------


@every_protocol
def test_server_opens_what_the_client_seals(name: str) -> None:
    """Each content is sealed by itself, and the rest of the request is as it was."""
    talk = Talk(name)
    body = message("first ü", temperature=0.5, stream=True)
    body["messages"].append({"role": "assistant", "content": "second"})
    sealed = talk.seal(body)
    received = json.loads(sealed.body)
    for index, expected in enumerate(("first ü", "second")):
        text = received["messages"][index]["content"]
        bound = talk.bound(sealed, "req", "model=org/m", f"m={index}", "c=-")
        assert talk.server.open(text, bound) == expected
        assert received["messages"][index]["role"] == body["messages"][index]["role"]
    assert "first" not in sealed.body.decode()
    assert {key: received[key] for key in ("model", "temperature", "stream")} == {
        "model": "org/m",
        "temperature": 0.5,
        "stream": True,
    }
    assert (sealed.method, sealed.target) == ("POST", CHAT)


@every_protocol
def test_headers_choose_the_protocol(name: str) -> None:
    """Algorithm and both keys are named; the caller's own headers stay, except those about it."""
    talk = Talk(name)
    own = [*JSON, ("content-length", "5"), ("X-Client-Pub-Key", "00"), ("X-E2EE-Version", "1")]
    sealed = talk.sealing().seal("POST", CHAT, own, json.dumps(message("x")).encode())
    names = {key.lower(): value for key, value in sealed.headers}
    assert len(names) == len(sealed.headers)
    assert names["authorization"] == "Bearer key"
    assert names["accept-encoding"] == "identity"
    assert "content-length" not in names
    prefix = "x-venice-tee" if name == "Venice" else "x"
    assert names[f"{prefix}-signing-algo"] == talk.protocol.algorithm
    assert names[f"{prefix}-model-pub-key"] == talk.server.public.hex()
    assert len(bytes.fromhex(names[f"{prefix}-client-pub-key"])) == talk.protocol.cipher.key_size
    assert ("x-encryption-version" in names) == (name == "NEAR ed25519")
    assert names.get("x-encrypt-all-fields") == ("true" if talk.is_near else None)
    assert names.get("x-no-aliasing") == ("true" if talk.is_near else None)
    assert names.get("x-e2ee-version") == ("2" if talk.is_phala else None)
    if talk.is_phala:
        assert len(names["x-e2ee-nonce"]) == 64
        assert names["x-e2ee-timestamp"] == str(NOW)


@every_protocol
def test_every_request_has_new_keys(name: str) -> None:
    """Neither the client's key nor a sealed text occurs twice."""
    talk = Talk(name)
    first, second = talk.seal(message("same")), talk.seal(message("same"))
    assert talk.client_key(first) != talk.client_key(second)
    assert first.body != second.body


@every_protocol
def test_empty_text_is_sealed_only_where_the_server_opens_it(name: str) -> None:
    """Servers without associated data take empty text as it is."""
    talk = Talk(name)
    content = json.loads(talk.seal(message("")).body)["messages"][0]["content"]
    assert bool(content) == talk.is_phala
    assert json.loads(talk.seal(message(None)).body)["messages"][0]["content"] is None


def test_near_seals_all_fields() -> None:
    """Names, tools, calls and lists of parts, which are JSON in one sealed text."""
    talk = Talk("NEAR ed25519")
    parts = [{"type": "image_url", "image_url": {"url": "https://host/a b.png"}}]
    function = {"name": "find patient", "description": "d e", "parameters": {"type": "object"}}
    call = {"id": "c1", "type": "function", "function": {"name": "f n", "arguments": "{ }"}}
    body = message(parts, tools=[{"type": "function", "function": function}])
    body["messages"][0] |= {"name": "Ann B", "audio": {"id": "a1", "data": "QQ =="}}
    body["messages"].append({"role": "assistant", "content": None, "tool_calls": [call]})
    body["messages"].append({"role": "tool", "tool_call_id": "c1", "content": "r s"})
    body["tool_choice"] = {"type": "function", "function": {"name": "f n"}}
    received = json.loads(talk.seal(body).body)
    sealed: list[tuple[tuple[str | int, ...], str]] = [
        (("messages", 0, "content"), json.dumps(parts, separators=(",", ":"))),
        (("messages", 0, "name"), "Ann B"),
        (("messages", 0, "audio", "data"), "QQ =="),
        (("messages", 1, "tool_calls", 0, "function", "name"), "f n"),
        (("messages", 1, "tool_calls", 0, "function", "arguments"), "{ }"),
        (("messages", 2, "content"), "r s"),
        (("tools", 0, "function", "name"), "find patient"),
        (("tools", 0, "function", "description"), "d e"),
        (("tools", 0, "function", "parameters"), '{"type":"object"}'),
        (("tool_choice", "function", "name"), "f n"),
    ]
    for path, expected in sealed:
        assert talk.server.open(at(received, *path)) == expected
    assert received["messages"][1]["tool_calls"][0]["id"] == "c1"
    assert received["messages"][2]["tool_call_id"] == "c1"


@pytest.mark.parametrize(
    ("target", "body", "paths"),
    [
        ("/v1/completions", {"prompt": "a b"}, [("prompt",)]),
        ("/v1/completions", {"prompt": ["a b", "a b"]}, [("prompt", 0), ("prompt", 1)]),
        ("/v1/embeddings", {"input": "a b"}, [("input",)]),
        ("/v1/images/generations", {"prompt": "a b", "size": "1024x1024"}, [("prompt",)]),
        (
            "/v1/rerank",
            {"query": "a b", "documents": ["a b", {"text": "a b"}]},
            [("query",), ("documents", 0), ("documents", 1, "text")],
        ),
        ("/v1/score", {"text_1": "a b", "text_2": "a b"}, [("text_1",), ("text_2",)]),
    ],
)
def test_near_seals_requests_to_other_endpoints(
    target: str, body: dict[str, Any], paths: list[tuple[str | int, ...]]
) -> None:
    """Each endpoint has fields of its own."""
    talk = Talk("NEAR ecdsa")
    received = json.loads(talk.seal({"model": "org/m", **body}, target).body)
    for path in paths:
        assert talk.server.open(at(received, *path)) == "a b"


def test_phala_binds_parts_by_their_position() -> None:
    """The text of each part is sealed with its index; types stay open."""
    talk = Talk("Phala ecdsa")
    sealed = talk.seal(message([{"type": "text", "text": "a b"}, {"type": "text", "text": "c d"}]))
    parts = json.loads(sealed.body)["messages"][0]["content"]
    for index, expected in enumerate(("a b", "c d")):
        bound = talk.bound(sealed, "req", "model=org/m", "m=0", f"c={index}")
        assert talk.server.open(parts[index]["text"], bound) == expected


def test_embeddings_are_asked_for_as_numbers() -> None:
    """Servers do not seal base64, for which OpenAI's client asks."""
    body = {"model": "m", "input": "a b", "encoding_format": "base64"}
    sealed = Talk("NEAR ed25519").seal(body, "/v1/embeddings")
    assert json.loads(sealed.body)["encoding_format"] == "float"


REFUSED: Final[dict[str, dict[str, Any]]] = {
    "unknown text": {"metadata_text": "a b"},
    "unknown word": {"user": "alice"},
    "unknown list": {"stop": ["END"]},
    "unknown numbers": {"tokens": [1, 2]},
    "unknown object": {"metadata": {"alice": True}},
    "names of tokens": {"logit_bias": {"17": 1}},
    "role of prose": {"messages": [{"role": "a b", "content": "x"}]},
    "content of a number": {"messages": [{"role": "user", "content": 5}]},
    "content of an object": {"messages": [{"role": "user", "content": {"text": "x"}}]},
    "name with a dot": {"a.b": 1},
    "name with a bracket": {"messages[].role": "x"},
    "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
    "token ids": {"return_token_ids": True},
    "model of prose": {"model": "a b"},
    "model of a number": {"model": 5},
}


@every_protocol
@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_request_with_text_that_is_not_sealed_is_refused(name: str, change: dict[str, Any]) -> None:
    """Fields that the protocol does not list would travel open."""
    refused(lambda: Talk(name).seal({**message("x"), **change}), "field")


@pytest.mark.parametrize("name", ["ed25519 version 1", "ecdsa", "Venice", "Phala ecdsa"])
def test_protocols_of_contents_refuse_other_texts(name: str) -> None:
    """Tools, names, images and probabilities are not sealed by them."""
    talk = Talk(name)
    tools = [{"type": "function", "function": {"name": "f"}}]
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    for body in (
        message("x", tools=tools),
        message("x", logprobs=True),
        message(image),
        {"model": "m", "messages": [{"role": "user", "content": "x", "name": "Ann"}]},
    ):
        refused(lambda body=body: talk.seal(body))  # type: ignore[misc]
    refused(lambda: talk.seal({"model": "m", "prompt": "x"}, "/v1/completions"), "seals requests")


def test_options_without_text_are_sent() -> None:
    """Numbers, flags and known words are what travels open, as the limits say."""
    talk = Talk("NEAR ed25519")
    options = {
        "temperature": 0.1,
        "n": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "chat_template_kwargs": {"enable_thinking": False},
        "stop": None,
        "tools": [],
        "logit_bias": {},
        "unknown_flag": True,
    }
    received = json.loads(talk.seal(message("x", **options)).body)
    assert {key: received[key] for key in options} == options
    assert any("model, roles, ids" in limit for limit in talk.sealing().not_proven)


def test_user_may_allow_fields_to_travel_open() -> None:
    """An allowed field is sent as it is, and the limits name it."""
    talk = Talk("NEAR ed25519")
    allow = frozenset({"user", "stop"})
    body = message("x", user="Ann B", stop=["END OF"])
    received = json.loads(talk.seal(body, allow_open=allow).body)
    assert (received["user"], received["stop"]) == ("Ann B", ["END OF"])
    assert "stop, user" in talk.sealing(allow_open=allow).not_proven[-1]


def test_other_models_than_the_proven_one_are_refused() -> None:
    """The key is that of one model."""
    talk = Talk("NEAR ed25519")
    assert talk.seal(message("x"), model="org/m").body
    refused(lambda: talk.seal(message("x"), model="org/n"), "model")
    refused(lambda: talk.seal({"messages": []}, model="org/n"), "model")


def test_requests_of_other_forms_are_refused() -> None:
    """Only JSON for a known endpoint can be sealed; nothing may be in a query."""
    sealing = Talk("NEAR ed25519").sealing()
    good = json.dumps(message("x")).encode()
    for target, headers, body in (
        (f"{CHAT}?prompt=x", JSON, good),
        ("/v1/models?prompt=two+words", JSON, b""),
        ("/v1/models?prompt=two%20words", JSON, b""),
        ("/v1/models?%C3%BC", JSON, b""),
        ("/v1/models?%ff=1", JSON, b""),
        ("/v1/models#part", JSON, b""),
        ("/v1/responses", JSON, good),
        ("/v1/audio/transcriptions", JSON, good),
        ("/v1/xcompletions", JSON, good),
        (CHAT, [("Content-Type", "multipart/form-data")], good),
        (CHAT, [], good),
        (CHAT, [*JSON, ("Content-Encoding", "gzip")], good),
        (CHAT, JSON, b"[]"),
        (CHAT, JSON, b'{"a":1,"a":2}'),
        (CHAT, JSON, b'{"a":' + b"[" * 64 + b"]" * 64 + b"}"),
        (CHAT, JSON, b" " * (MAX_BODY + 1)),
    ):
        refused(lambda args=(target, headers, body): sealing.seal("POST", *args))  # type: ignore[misc]
    for size in range(1, len(good)):
        refused(lambda size=size: sealing.seal("POST", CHAT, JSON, good[:size]))  # type: ignore[misc]


def test_request_without_body_is_sent_open() -> None:
    """A list of models has nothing to seal; its answer is marked as unauthenticated."""
    sealed = Talk("NEAR ed25519").sealing().seal("GET", "/v1/models", JSON, b"")
    assert sealed == ("GET", "/v1/models", JSON, b"", sealed.opener, False)
    assert sealed.opener.start(200, EVENTS) == EVENTS
    assert sealed.opener.feed(b"abc") == b"abc"
    assert sealed.opener.finish() == b""
    assert vars(type(sealed.opener))["authenticated"] is False
    target = "/v1/signature/chat-1?model=org%2Fm&signing_algo=ed25519&limit="
    assert Talk("NEAR ecdsa").sealing().seal("GET", target, JSON, b"").target == target


@pytest.mark.parametrize("name", ["NEAR ed25519", "NEAR ecdsa"])
def test_invalid_key_is_refused(name: str) -> None:
    """A key of another size, of small order or off the curve is refused before any request."""
    protocol = CIPHERS[name][0]
    for key in (b"", bytes(32), b"\1" + bytes(31), b"\4" + bytes(64)):
        refused(lambda key=key: FieldSealing(protocol, key), "key for sealing")  # type: ignore[misc]


# -- answers ---------------------------------------------------------------------------------------


@every_protocol
def test_client_opens_what_the_server_seals(name: str) -> None:
    """An answer in JSON is opened at its end."""
    talk = Talk(name)
    sealed = talk.seal(message("x"))
    answer = talk.answer(sealed, "message", "the answer ü", usage={"total_tokens": 5})
    data = json.dumps(answer).encode()
    head = [*JSON, ("Content-Length", str(len(data))), ("X-E2EE-Applied", "true")]
    assert sealed.opener.start(200, head) == [*JSON, ("X-E2EE-Applied", "true")]
    assert [sealed.opener.feed(data[:9]), sealed.opener.feed(data[9:])] == [b"", b""]
    opened = json.loads(sealed.opener.finish())
    assert opened["choices"][0]["message"]["content"] == "the answer ü"
    assert {**opened, "choices": None} == {**answer, "choices": None}
    assert vars(sealed.opener)["authenticated"] is True


@every_protocol
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_client_opens_streams(name: str, size: int) -> None:
    """Events are opened as they arrive, wherever the bytes are cut."""
    talk = Talk(name)
    sealed = talk.seal(message("x", stream=True))
    start = {"id": "chat-1", "model": "served", "choices": [{"delta": {"role": "assistant"}}]}
    events = [
        b": keep-alive, and prose\n\n",
        event(start),
        *(event(talk.answer(sealed, "delta", text)) for text in ("one ", "two\n")),
        event({"id": "chat-1", "choices": [], "usage": {"total_tokens": 3}}),
        b"event: done\r\ndata: [DONE]\r\n\r\n",
        b": the end\n\n",
    ]
    data = b"".join(events)
    sealed.opener.start(200, EVENTS)
    opened = b"".join(sealed.opener.feed(data[at : at + size]) for at in range(0, len(data), size))
    assert sealed.opener.finish() == b""
    found = [one.removeprefix(b"data: ") for one in opened.split(b"\n\n") if one]
    assert found[-1] == b"event: done\ndata: [DONE]"
    texts = [json.loads(one)["choices"] for one in found[:-1]]
    assert [choices[0]["delta"].get("content") for choices in texts if choices] == [
        None,
        "one ",
        "two\n",
    ]
    assert b"prose" not in opened


def test_near_opens_all_fields() -> None:
    """Calls, refusals, probabilities and reasoning are sealed, too."""
    talk = Talk("NEAR ed25519")
    sealed = talk.seal(message("x", logprobs=True))

    def seal(text: str) -> str:
        return talk.server.seal(talk.client_key(sealed), text)

    call = {"name": seal("f n"), "arguments": seal('{"a":1}')}
    alternative = {"token": seal("t"), "logprob": -1.5, "bytes": seal("[116]")}
    token = {**alternative, "top_logprobs": [alternative]}
    choice = {
        "index": 0,
        "finish_reason": "tool_calls",
        "message": {
            "role": "assistant",
            "content": [{"type": "text", "text": seal("part")}],
            "refusal": None,
            "reasoning": seal("why"),
            "annotations": [],
            "tool_calls": [{"id": "c1", "type": "function", "index": 0, "function": call}],
        },
        "logprobs": {"content": [token]},
    }
    sealed.opener.start(200, JSON)
    sealed.opener.feed(json.dumps({"id": "c", "choices": [choice]}).encode())
    (opened,) = json.loads(sealed.opener.finish())["choices"]
    assert opened["message"]["content"] == [{"type": "text", "text": "part"}]
    assert opened["message"]["reasoning"] == "why"
    function = opened["message"]["tool_calls"][0]["function"]
    assert function == {"name": "f n", "arguments": '{"a":1}'}
    expected = {"token": "t", "logprob": -1.5, "bytes": [116]}
    assert opened["logprobs"]["content"] == [{**expected, "top_logprobs": [expected]}]


@pytest.mark.parametrize(
    ("target", "body", "make", "expected"),
    [
        (
            "/v1/completions",
            {"prompt": "x"},
            lambda seal: {"choices": [{"text": seal("a b"), "index": 0}]},
            {"choices": [{"text": "a b", "index": 0}]},
        ),
        (
            "/v1/embeddings",
            {"input": "x"},
            lambda seal: {"data": [{"embedding": seal("[0.5,-1]"), "index": 0}]},
            {"data": [{"embedding": [0.5, -1], "index": 0}]},
        ),
        (
            "/v1/images/generations",
            {"prompt": "x"},
            lambda seal: {"data": [{"b64_json": seal("QQ=="), "revised_prompt": seal("a b")}]},
            {"data": [{"b64_json": "QQ==", "revised_prompt": "a b"}]},
        ),
        (
            "/v1/rerank",
            {"query": "x", "documents": []},
            lambda seal: {"results": [{"relevance_score": 0.5, "document": {"text": seal("a")}}]},
            {"results": [{"relevance_score": 0.5, "document": {"text": "a"}}]},
        ),
        (
            "/v1/score",
            {"text_1": "x", "text_2": "y"},
            lambda seal: {"score": seal("0.25"), "data": [{"score": 0.5}]},
            {"score": 0.25, "data": [{"score": 0.5}]},
        ),
    ],
)
def test_near_opens_answers_of_other_endpoints(
    target: str,
    body: dict[str, Any],
    make: Callable[[Callable[[str], str]], object],
    expected: object,
) -> None:
    """Lists of numbers are JSON in a sealed text; scores of a list are open."""
    talk = Talk("NEAR ecdsa")
    sealed = talk.seal({"model": "m", **body}, target)
    answer = make(lambda text: talk.server.seal(talk.client_key(sealed), text))
    sealed.opener.start(200, JSON)
    sealed.opener.feed(json.dumps(answer).encode())
    assert json.loads(sealed.opener.finish()) == expected


def opened(talk: Talk, sealed: SealedRequest, answer: object) -> object:
    """Open an answer in JSON."""
    del talk
    sealed.opener.start(200, JSON)
    sealed.opener.feed(json.dumps(answer).encode())
    return json.loads(sealed.opener.finish())


def with_content(content: object, **more: object) -> dict[str, Any]:
    """Return an answer with this content."""
    choice = {"message": {"role": "assistant", "content": content, **more}}
    return {"id": "chat-1", "model": "served", "choices": [choice]}


@every_protocol
def test_answer_with_open_text_is_refused(name: str) -> None:
    """Text that a relay has put in, or that the server has not sealed, never gets through."""
    for answer in (
        with_content("plain text"),
        with_content("word"),
        with_content(["plain"]),
        with_content(7),
        with_content(None, tool_calls=[{"id": "c", "function": {"name": "rm"}}]),
        with_content(None, reasoning_content="plain text"),
        with_content(None, unknown="word"),
        {"choices": [{"text": "word"}]},
        {"choices": [{"token_ids": [1, 2]}]},
        {"choices": [], "note": "plain text"},
        {"choices": [], "a.b": 1},
        {"error": {"message": "plain text", "code": 5}},
        with_content(None, logprobs={"content": [{"token": "x"}]}),
    ):
        talk = Talk(name)
        sealed = talk.seal(message("x"))
        refused(lambda: opened(talk, sealed, answer), "field")  # noqa: B023


@every_protocol
def test_changed_answer_is_refused(name: str) -> None:
    """Every byte of a sealed text is authenticated, and every cut is refused."""
    talk = Talk(name)
    sealed = talk.seal(message("x"))
    content = talk.answer(sealed, "message", "ok")["choices"][0]["message"]["content"]
    data = bytes.fromhex(content)
    for at_byte in range(0, len(data), 3):
        changed = data[:at_byte] + bytes([data[at_byte] ^ 1]) + data[at_byte + 1 :]
        for wrong in (changed.hex(), data[:at_byte].hex() or "0", content[: 2 * at_byte + 1]):
            refused(lambda wrong=wrong: opened(talk, sealed, with_content(wrong)))  # type: ignore[misc]


@every_protocol
def test_answer_for_another_key_is_refused(name: str) -> None:
    """Text that is sealed to the key of another request is not opened."""
    talk = Talk(name)
    other = talk.answer(talk.seal(message("x")), "message", "ok")
    refused(lambda: opened(talk, talk.seal(message("x")), other))


@pytest.mark.parametrize("name", ["Phala ed25519", "Phala ecdsa"])
@pytest.mark.parametrize(
    "change",
    [
        {"id": "chat-2"},
        {"model": "another"},
        {"id": "a|b"},
        {"id": 5},
        {"model": None},
    ],
)
def test_phala_binds_answers_to_their_position(name: str, change: dict[str, Any]) -> None:
    """A text is opened only in the answer, choice and field for which it was sealed."""
    talk = Talk(name)
    sealed = talk.seal(message("x"))
    answer = talk.answer(sealed, "message", "ok")
    refused(lambda: opened(talk, sealed, {**answer, **change}))
    (choice,) = answer["choices"]
    sealed = talk.seal(message("x"))
    answer = talk.answer(sealed, "message", "ok")
    (choice,) = answer["choices"]
    second = {**answer, "choices": [{"message": {}}, choice]}
    refused(lambda: opened(talk, sealed, second))
    content = choice["message"]["content"]
    moved = {**answer, "choices": [{"message": {"reasoning_content": content}}]}
    refused(lambda: opened(talk, sealed, moved))


def test_model_with_a_bar_cannot_be_bound() -> None:
    """It could be read as several parts of the associated data."""
    talk = Talk("Phala ecdsa")
    refused(lambda: talk.seal({"model": "a|b", "messages": [{"role": "user", "content": "x"}]}))


def test_associated_data_have_no_ambiguous_parts() -> None:
    """Names with bars, and positions that the protocol does not have, are refused."""
    bind = PhalaAssociatedData()
    good = RequestContext("ecdsa", "m", "00", 1)
    for context in (good._replace(model="a|b"), good._replace(model="a\nb")):
        refused(lambda context=context: bind.of_request(context, ("messages", 0, "content")))  # type: ignore[misc]
    for path in (("prompt",), ("messages", 0, "name"), ("messages", 0, "content", 0, "x")):
        refused(lambda path=path: bind.of_request(good, path))  # type: ignore[misc]
    for other in (("choices", 0, "text"), ("data", 0, "message", "content"), ("choices", 0)):
        refused(lambda other=other: bind.of_answer(good, {}, other))  # type: ignore[misc]
    place = ("choices", 0, "message", "content")
    for answer in ({"model": "a|b"}, {"id": "a|b"}, {"id": 5}):
        refused(lambda answer=answer: bind.of_answer(good, answer, place))  # type: ignore[misc]


def test_part_of_an_event_after_the_last_is_refused() -> None:
    """The stream ends with a whole event."""
    for rest in (b"data: {}", b"data: {}\n", b"x"):
        opener = Talk("NEAR ed25519").seal(message("x")).opener
        opener.start(200, EVENTS)
        opener.feed(b"data: [DONE]\n\n" + rest)
        refused(opener.finish, "stream")


def test_heads_of_other_answers_are_refused() -> None:
    """A sealed answer is JSON or a stream of events, uncompressed."""
    talk = Talk("NEAR ed25519")
    for head in (
        [],
        [("Content-Type", "text/html")],
        [*JSON, ("Content-Encoding", "gzip")],
        [*JSON, ("X-E2EE-Applied", "false")],
    ):
        opener = talk.seal(message("x")).opener
        refused(lambda opener=opener, head=head: opener.start(200, head), "answer")  # type: ignore[misc]


def test_error_is_passed_on_as_unauthenticated() -> None:
    """Servers do not seal errors."""
    opener = Talk("NEAR ed25519").seal(message("x")).opener
    head = [("Content-Type", "text/plain")]
    assert opener.start(503, head) == head
    assert opener.feed(b"busy") == b"busy"
    assert opener.finish() == b""
    assert vars(opener)["authenticated"] is False


def test_every_cut_of_an_answer_is_refused() -> None:
    """An answer that ends too early is never taken for a whole one."""
    talk = Talk("NEAR ecdsa")
    sealed = talk.seal(message("x"))
    data = json.dumps(talk.answer(sealed, "message", "ok")).encode()
    for size in range(len(data)):
        sealed.opener.start(200, JSON)
        refused(lambda size=size: (sealed.opener.feed(data[:size]), sealed.opener.finish()))  # type: ignore[misc]
        vars(sealed.opener)["_body"].clear()


def test_every_cut_of_a_stream_is_refused() -> None:
    """A stream must reach its `[DONE]`."""
    talk = Talk("NEAR ecdsa")
    sealed = talk.seal(message("x"))
    data = event(talk.answer(sealed, "delta", "ok")) + b"data: [DONE]\n\n"
    for size in range(len(data)):
        sealed.opener.start(200, EVENTS)
        sealed.opener.feed(data[:size])
        refused(sealed.opener.finish, "stream")
    sealed.opener.start(200, EVENTS)
    sealed.opener.feed(data)
    assert sealed.opener.finish() == b""


@pytest.mark.parametrize(
    "data",
    [
        b"data: text\n\n",
        b"data: \xff\n\n",
        b"event: some prose\ndata: {}\n\n",
        b"id: some prose\n\n",
        b'data: {"a":1}\ndata: {"a":2}\n\n',
        b"data: [DONE]\n\ndata: {}\n\n",
        b'data: {"error":{"message":"the server is busy"}}\n\n',
    ],
)
def test_stream_with_other_events_is_refused(data: bytes) -> None:
    """Events hold JSON with sealed texts, and none follows the last."""
    opener = Talk("NEAR ed25519").seal(message("x")).opener
    opener.start(200, EVENTS)
    refused(lambda: opener.feed(data))


def test_sizes_of_answers_are_limited() -> None:
    """Neither an event nor an answer grows without bound."""
    talk = Talk("NEAR ed25519")
    opener = talk.seal(message("x")).opener
    opener.start(200, EVENTS)
    refused(lambda: opener.feed(b"data: " + b"x" * MAX_EVENT), "over")
    opener = talk.seal(message("x")).opener
    opener.start(200, JSON)
    refused(lambda: opener.feed(bytes(MAX_BODY + 1)), "over")


def test_mapping_of_keys_is_that_of_the_server() -> None:
    """Both sides map Ed25519 keys to X25519 in the same way."""
    talk = Talk("NEAR ed25519")
    assert len(montgomery(talk.server.public)) == 32
    assert repr(talk.protocol.cipher) == "FieldCipher(ed25519, xchacha20-poly1305)"
