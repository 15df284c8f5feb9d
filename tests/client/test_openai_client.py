"""Clients of openai over proven connections: answers, streams, refusals without retries."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pytest

import attestkit
from attestkit.errors import UsageError
from attestkit.ra_tls import PeerRefusedError
from attestkit.testing.attested_server import AttestedServer

WORDS: Final = ["one ", "two ", "three"]
QUESTION: Final[Any] = {"model": "m", "messages": [{"role": "user", "content": "count"}]}


def _answer(object_name: str, **choice: object) -> bytes:
    choices = [{"index": 0, **choice}]
    found = {"id": "a", "object": object_name, "created": 1, "model": "m", "choices": choices}
    return json.dumps(found).encode()


async def model(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
    """Answer chat completions, also as a stream."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            event = await receive()
            await send({"type": f"{event['type']}.complete"})
        return
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event.get("body", b""), bool(event.get("more_body"))
    streamed = bool(json.loads(body).get("stream"))
    kind = b"text/event-stream" if streamed else b"application/json"
    headers = [(b"content-type", kind)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if not streamed:
        message = {"role": "assistant", "content": "".join(WORDS)}
        whole = _answer("chat.completion", finish_reason="stop", message=message)
        await send({"type": "http.response.body", "body": whole})
        return
    for word in WORDS:
        piece = b"data: " + _answer("chat.completion.chunk", delta={"content": word}) + b"\n\n"
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


@pytest.fixture
def server(attested_server: Callable[..., AttestedServer]) -> AttestedServer:
    """A server with a model."""
    return attested_server(model)


@pytest.fixture
def endpoint(server: AttestedServer) -> Iterator[attestkit.Endpoint]:
    """An endpoint of the server."""
    with attestkit.connect(f"{server.url}/v1", policy=server.policy, server_ca=server.ca) as found:
        yield found


def test_answer_comes_whole_and_as_a_stream(
    server: AttestedServer, endpoint: attestkit.Endpoint
) -> None:
    """Requests go below the path of the URL; a stream arrives in its pieces."""
    with endpoint.openai(api_key="k") as client:
        whole = client.chat.completions.create(**QUESTION)
        pieces = client.chat.completions.create(**QUESTION, stream=True)
        assert whole.choices[0].message.content == "".join(WORDS)
        assert [piece.choices[0].delta.content for piece in pieces] == WORDS
    assert {request.path for request in server.requests} == {"/v1/chat/completions"}
    assert server.documents == 1  # of connect: the connection has the same key


def test_asyncio_client_answers(endpoint: attestkit.Endpoint) -> None:
    """The same on an event loop, ten requests at once."""

    async def run() -> None:
        async with endpoint.async_openai(api_key="k") as client:
            many = await asyncio.gather(
                *(client.chat.completions.create(**QUESTION) for _ in range(10))
            )
            assert {one.choices[0].message.content for one in many} == {"".join(WORDS)}
            stream = await client.chat.completions.create(**QUESTION, stream=True)
            assert [piece.choices[0].delta.content async for piece in stream] == WORDS

    asyncio.run(run())


def test_refusal_is_raised_at_once(server: AttestedServer, endpoint: attestkit.Endpoint) -> None:
    """A refusal keeps its reason, is an error of both packages, and is not retried."""
    import openai  # lazy: it takes a third of a second, and one process has this test

    server.relay()
    server.disconnect()
    before = server.documents
    with endpoint.openai(api_key="k") as client, pytest.raises(openai.OpenAIError) as refused:
        client.chat.completions.create(**QUESTION)
    assert isinstance(refused.value, PeerRefusedError)
    assert refused.value.reason == "other_key"
    assert server.documents == before + 1
    assert server.requests == []


def test_asyncio_refusal_is_raised_at_once(
    server: AttestedServer, endpoint: attestkit.Endpoint
) -> None:
    """The same on an event loop."""
    import openai  # lazy, see above

    server.swap_key()
    server.disconnect()

    async def run() -> None:
        async with endpoint.async_openai(api_key="k") as client:
            await client.chat.completions.create(**QUESTION)

    with pytest.raises(openai.OpenAIError) as refused:
        asyncio.run(run())
    assert isinstance(refused.value, PeerRefusedError)
    assert server.requests == []


def test_other_server_is_refused(endpoint: attestkit.Endpoint) -> None:
    """A client whose base URL was changed sends nothing."""
    with endpoint.openai(api_key="k") as client:
        client.base_url = "https://127.0.0.1:1/v1"
        with pytest.raises(PeerRefusedError) as refused:
            client.chat.completions.create(**QUESTION)
        assert refused.value.reason == "other_origin"


@pytest.mark.parametrize("name", ["base_url", "http_client"])
def test_own_connections_are_refused(endpoint: attestkit.Endpoint, name: str) -> None:
    """Options that choose other connections are a mistake of the caller."""
    options: dict[str, Any] = {name: None}
    with pytest.raises(UsageError) as refused:
        endpoint.openai(api_key="k", **options)
    assert refused.value.reason == "conflict"
