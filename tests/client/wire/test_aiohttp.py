"""aiohttp sends nothing to a key that is not proven."""

import ssl
import threading
from typing import Any

import aiohttp
import pytest

from tests.client.wire.authority import identity
from tests.client.wire.pinned_clients import every_loop, proven, refused, run, session_of
from tests.client.wire.servers import TIMEOUT, http_answer, proxying, serving
from tests.client.wire.simple_verifier import SimpleServerVerifier


@every_loop
def test_aiohttp_uses_proven_key(loop: str) -> None:
    """Requests to a proven key share a connection, and no question is asked."""
    with serving() as server:

        async def program() -> None:
            async with session_of(proven(server)) as session:
                for target in ("/one", "/two"):
                    async with session.post(server.url + target, data=b"body") as answer:
                        content = await answer.json(content_type=None)
                        assert (content["target"], content["body"]) == (target, "body")

        run(loop, program())
        assert len(server.connections) == 1
        assert server.questions == 0


@every_loop
@pytest.mark.parametrize("name", ["a", "relay"])
def test_aiohttp_refuses_unproven_key(loop: str, name: str) -> None:
    """A key that was not proven is refused, be it the server's own or a relay's; the text helps."""
    with serving(name) as server:
        server_verifier = SimpleServerVerifier(server) if name == "a" else proven(server)

        async def program() -> None:
            async with session_of(server_verifier) as session:
                error = await refused(lambda: session.post(server.url, data=b"secret"))
                assert error.reason == "other_key"
                assert "await endpoint.aprove()" in str(error)

        run(loop, program())
        assert server.received == b""


@every_loop
def test_aiohttp_goes_on_after_rotation_once_proven(loop: str) -> None:
    """A key that changes between connections is refused until it is proven."""

    def answer(secured: ssl.SSLSocket, _head: bytes, _body: bytes) -> None:
        secured.sendall(http_answer(b"{}", "Connection: close"))
        raise ConnectionError

    with serving(answer=answer) as server:
        server_verifier = proven(server)

        async def program() -> None:
            async with session_of(server_verifier) as session:
                async with session.post(server.url + "/first") as response:
                    await response.read()
                server.use("b")
                await refused(lambda: session.post(server.url + "/second", data=b"secret"))
                server_verifier.accepted.add(identity("b").spki_sha256)
                async with session.post(server.url + "/third") as response:
                    await response.read()

        run(loop, program())
        assert server.requests == [b"/first", b"/third"]
        assert b"secret" not in server.received


@every_loop
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_aiohttp_sends_nothing_on_idle_connection_when_proof_ends(loop: str, method: str) -> None:
    """A kept connection of an ended proof carries no new request."""
    with serving() as server:
        server_verifier = proven(server)

        async def program() -> None:
            async with session_of(server_verifier) as session:
                async with session.request(method, server.url + "/first") as answer:
                    await answer.read()
                server_verifier.forget()
                with pytest.raises(aiohttp.ClientError):
                    async with session.request(method, server.url + "/second", data=b"secret"):
                        pass
                server_verifier.accepted.add(identity("a").spki_sha256)
                async with session.request(method, server.url + "/third") as answer:
                    await answer.read()

        run(loop, program())
        assert server.requests == [b"/first", b"/third"]
        assert b"secret" not in server.received


@every_loop
def test_aiohttp_finishes_both_bodies_when_proof_ends(loop: str) -> None:
    """A request and an answer under way are finished."""
    release, received = threading.Event(), threading.Event()

    def answer(secured: ssl.SSLSocket, _head: bytes, body: bytes) -> None:
        assert body == b"GET /is/a/body HTTP/1.1\r\n" * 2
        secured.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        received.set()
        assert release.wait(TIMEOUT)
        secured.sendall(b"3\r\ntwo\r\n0\r\n\r\n")

    with serving(answer=answer) as server:
        server_verifier = proven(server)

        async def body() -> Any:
            yield b"GET /is/a/body HTTP/1.1\r\n"
            server_verifier.forget()
            yield b"GET /is/a/body HTTP/1.1\r\n"

        async def program() -> None:
            async with (
                session_of(server_verifier) as session,
                session.post(server.url, data=body()) as response,
            ):
                assert await response.content.readany() == b"one"
                release.set()
                assert await response.content.read() == b"two"

        run(loop, program())
        assert server.requests == [b"/"]


def test_aiohttp_tunnels_through_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through tunnels the keys are compared as without them; a hostile proxy gets nothing."""
    with serving() as server, serving("relay") as relay:
        with proxying() as honest, proxying(to=relay.port) as hostile:
            server_verifier = proven(server)

            async def program() -> None:
                async with session_of(server_verifier) as session:
                    async with session.post(server.url + "/x", proxy=honest.url) as answer:
                        assert answer.status == 200
                    call = lambda: session.post(server.url, data=b"secret", proxy=hostile.url)  # noqa: E731
                    assert (await refused(call)).reason == "other_key"
                monkeypatch.setenv("HTTPS_PROXY", hostile.url)
                async with (
                    session_of(server_verifier) as session,
                    session.post(server.url) as answer,
                ):
                    assert answer.status == 200, "the environment is not heeded by default"
                async with session_of(server_verifier, trust_env=True) as session:
                    await refused(lambda: session.post(server.url, data=b"secret"))

            run("asyncio", program())
            assert len(honest.targets) == 1
            assert len(hostile.targets) == 2
        assert relay.received == b""
