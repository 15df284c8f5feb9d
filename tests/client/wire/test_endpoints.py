"""Each client of an endpoint, with servers and verifiers as users have them."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import pytest

import attestkit
from attestkit.client.endpoint import Endpoint
from attestkit.client.proofs.appraisal import Require
from attestkit.errors import UsageError
from attestkit.ra_tls import PeerRefusedError
from attestkit.testing import AttestedServer
from tests.client.wire.pinned_clients import refusal_in
from tests.raising import raises

Make = Callable[..., AttestedServer]
SECRET: Final = b"a secret of the user"


def send_httpx(endpoint: Endpoint, library: Any, body: bytes) -> bytes:
    """Send a request on a new connection, and return the answer."""
    with endpoint.client(http=library) as client:
        answer: bytes = client.post("/", content=body).content
        return answer


def send_httpx_async(endpoint: Endpoint, library: Any, body: bytes) -> bytes:
    """Send it from an event loop."""

    async def program() -> bytes:
        async with endpoint.async_client(http=library) as client:
            answer: bytes = (await client.post("/", content=body)).content
            return answer

    return asyncio.run(program())


def send_requests(endpoint: Endpoint, _: Any, body: bytes) -> bytes:
    """Send it with requests."""
    with endpoint.requests_session() as session:
        answer: bytes = session.post(endpoint.url, data=body).content
        return answer


def send_aiohttp(endpoint: Endpoint, _: Any, body: bytes) -> bytes:
    """Send it with aiohttp; prove the server afresh if its key is not proven, as the guide says."""

    async def program() -> bytes:
        connector = aiohttp.TCPConnector(ssl=endpoint.ssl_context)
        async with aiohttp.ClientSession(connector=connector) as session:
            for attempt in range(2):
                try:
                    async with session.post(endpoint.url, data=body) as answer:
                        return await answer.read()
                except aiohttp.ClientSSLError as error:
                    refusal = refusal_in(error)
                    assert refusal is not None
                    if attempt or refusal.reason != "other_key":
                        raise refusal from refusal.__cause__
                    await endpoint.aprove()
        raise AssertionError

    return asyncio.run(program())


CLIENTS: Final[dict[str, tuple[Callable[[Endpoint, Any, bytes], bytes], str]]] = {
    "httpx": (send_httpx, "httpx"),
    "httpx async": (send_httpx_async, "httpx"),
    "httpx2": (send_httpx, "httpx2"),
    "httpx2 async": (send_httpx_async, "httpx2"),
    "requests": (send_requests, ""),
    "aiohttp": (send_aiohttp, ""),
}
every_client = pytest.mark.parametrize("name", CLIENTS)


def send(name: str, endpoint: Endpoint, body: bytes) -> bytes:
    """Send a request on a new connection of a client, and return the answer."""
    function, library = CLIENTS[name]
    return function(endpoint, library, body)


def connect(server: AttestedServer, **options: Any) -> Endpoint:
    """Connect to a server as its user does."""
    return attestkit.connect(server.url, policy=server.policy, server_ca=server.ca, **options)


@pytest.mark.slow
@every_client
@pytest.mark.parametrize("ra_tls", [False, True])
def test_endpoint_clients_follow_rotation_and_refuse_swapped_key(
    attested_server: Make, name: str, ra_tls: bool
) -> None:
    """A renewed key is proven before the request; another key gets nothing."""
    server = attested_server(ra_tls=ra_tls)
    require = Require(freshness="key possession") if ra_tls else Require()
    with connect(server, require=require) as endpoint:
        assert send(name, endpoint, b"first") == b"first"
        server.rotate()
        server.disconnect()
        assert send(name, endpoint, b"second") == b"second"
        server.swap_key()
        with raises(PeerRefusedError, "report_data" if ra_tls else "other_key"):
            send(name, endpoint, SECRET)
    assert [request.body_size for request in server.requests] == [5, 6]
    assert not any(SECRET in received for received in server.received)


@every_client
def test_endpoint_clients_prove_again_when_the_proof_ends(attested_server: Make, name: str) -> None:
    """After `forget` each client proves the server before its request, and `close` ends all."""
    server = attested_server()
    with connect(server) as endpoint:
        send(name, endpoint, b"first")
        endpoint.forget()
        send(name, endpoint, b"second")
        assert server.documents == 2
        if name == "aiohttp":
            return
        endpoint.close()
        with raises(UsageError, "closed"):
            send(name, endpoint, SECRET)
    assert len(server.requests) == 2


@every_client
def test_endpoint_clients_are_refused_at_once_after_several_refusals(
    attested_server: Make, name: str
) -> None:
    """After three refusals in a row no further document is asked for."""
    server = attested_server()
    with connect(server) as endpoint:
        server.relay()
        reasons = []
        for _ in range(5):
            with pytest.raises(PeerRefusedError) as caught:
                send(name, endpoint, SECRET)
            reasons.append(caught.value.reason)
    assert reasons == ["other_key"] * 3 + ["refused_recently"] * 2
    assert server.documents <= 4
    assert not server.requests
