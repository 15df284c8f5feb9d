"""Answers with sealed fields, of a server written with other libraries."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from attestkit.client.sealing.event_stream import MAX_EVENT
from attestkit.client.sealing.field_protocols import (
    PhalaAssociatedData,
)
from attestkit.client.sealing.fields import MAX_BODY, RequestContext
from attestkit.client.sealing.protocol import SealedRequest
from tests.client.sealing.field_server import event, montgomery
from tests.client.sealing.field_talk import (
    EVENTS,
    JSON,
    Talk,
    every_protocol,
    message,
    refused,
)
from tests.runner.cases import every_case

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


@every_case(
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


@every_case("name", ["Phala ed25519", "Phala ecdsa"])
@every_case(
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


@every_case(
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
