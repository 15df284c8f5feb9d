"""Requests with sealed fields, against a server written with other libraries."""

import json
from typing import Any, Final

import pytest

from attestkit.client.sealing.fields import MAX_BODY, FieldSealing
from tests.client.sealing.field_server import at
from tests.client.sealing.field_talk import (
    CHAT,
    CIPHERS,
    EVENTS,
    JSON,
    NOW,
    Talk,
    every_protocol,
    message,
    refused,
)
from tests.runner.cases import every_case

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


@every_case(
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
@every_case("change", REFUSED.values(), ids=REFUSED)
def test_request_with_text_that_is_not_sealed_is_refused(name: str, change: dict[str, Any]) -> None:
    """Fields that the protocol does not list would travel open."""
    refused(lambda: Talk(name).seal({**message("x"), **change}), "field")


@every_case("name", ["ed25519 version 1", "ecdsa", "Venice", "Phala ecdsa"])
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
    refused(lambda: talk.seal({"model": "m", "prompt": "x"}, "/v1/completions"), "request target")


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
        refused(lambda key=key: FieldSealing(protocol, key), "key to encrypt to")  # type: ignore[misc]
