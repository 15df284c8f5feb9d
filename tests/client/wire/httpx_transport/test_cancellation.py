"""Requests that are cancelled while the server is proven leave nothing behind, and send nothing."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

import anyio
import pytest

from attestkit.client.wire.httpx_transport import http_transports
from attestkit.client.wire.tls import tls_context
from attestkit.errors import UsageError
from tests.client.wire.authority import authority
from tests.client.wire.servers import TIMEOUT, WireServer, proxying, serving
from tests.client.wire.simple_verifier import SimpleServerVerifier
from tests.raising import raises

every_library = pytest.mark.parametrize("library", ["httpx", "httpx2"])


def client_of(library: str, server_verifier: SimpleServerVerifier, **options: Any) -> Any:
    """Return an AsyncClient for the server of a verifier."""
    kind: Any = library
    transport = http_transports(kind).asynchronous(
        server_verifier, tls_context(authority().pem), **options
    )
    return import_module(library).AsyncClient(transport=transport, timeout=TIMEOUT)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    while not condition():  # noqa: ASYNC110 - of a thread that has no loop
        await asyncio.sleep(0.005)


async def cancel(task: "asyncio.Task[Any]") -> None:
    """Cancel a task, and wait for its end."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@every_library
@pytest.mark.parametrize("proxied", [False, True])
def test_cancelled_while_the_answer_is_awaited(library: str, proxied: bool) -> None:
    """The connection is closed; the next request is proven and sent, with a pool of one."""
    with serving(hang=True) as server, proxying() as proxy:
        limits = import_module(library).Limits(max_connections=1)
        options = {"proxy": proxy.url} if proxied else {}

        async def program() -> None:
            async with client_of(
                library, SimpleServerVerifier(server), limits=limits, **options
            ) as client:
                task = asyncio.ensure_future(client.post(server.url, content=b"secret"))
                await until(lambda: server.questions)
                await cancel(task)
                await asyncio.to_thread(server.connections[0].ended.wait, TIMEOUT)
                server.hang = False
                assert (await client.post(server.url + "/x", content=b"body")).status_code == 200

        asyncio.run(program())
        assert server.connections[0].ended.is_set()
        assert b"secret" not in server.received
        assert server.requests == [b"/x"]


@every_library
def test_cancelled_while_the_evidence_is_verified(library: str) -> None:
    """The thread that verifies may go on; the request is not sent, and others can be proven."""
    entered, release = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        assert release.wait(TIMEOUT)

    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        server_verifier.work = work

        async def program() -> None:
            async with client_of(library, server_verifier) as client:
                task = asyncio.ensure_future(client.post(server.url, content=b"secret"))
                await until(entered.is_set)
                await cancel(task)
                release.set()
                assert (await client.post(server.url + "/x")).status_code == 200

        asyncio.run(program())
        assert b"secret" not in server.received
        assert server.requests == [b"/x"]


@every_library
@pytest.mark.parametrize("first", [True, False])
def test_cancelled_while_another_connection_proves(library: str, first: bool) -> None:
    """Of two requests, the one that waits or that proves is cancelled; the other is sent."""
    entered, release = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        assert release.wait(TIMEOUT)

    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        server_verifier.work = work

        async def program() -> None:
            async with client_of(library, server_verifier) as client:
                proving = asyncio.ensure_future(client.post(server.url + "/0"))
                await until(entered.is_set)
                waiting = asyncio.ensure_future(client.post(server.url + "/1"))
                await until(lambda: len(server.connections) == 2)
                await until(lambda: server.connections[1].handshake)
                await asyncio.sleep(0.02)  # it may wait now; either way it must work
                await cancel(proving if first else waiting)
                release.set()
                answer = await (waiting if first else proving)
                assert answer.status_code == 200

        asyncio.run(program())
        assert server.requests == [b"/1" if first else b"/0"]


@every_library
def test_cancelled_while_the_pool_of_an_ended_proof_is_closed(library: str) -> None:
    """The request's own pool is released, so that it is closed after the next end of a proof."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)

        async def program() -> None:
            async with client_of(library, server_verifier) as client:
                await client.post(server.url + "/0")
                pools = client._transport.pools
                pool, closing = pools._current.pool, asyncio.Event()
                close = pool.aclose

                async def hang() -> None:
                    closing.set()
                    try:
                        await asyncio.sleep(TIMEOUT)
                    finally:
                        await close()

                pool.aclose = hang
                server_verifier.forget()
                task = asyncio.ensure_future(client.post(server.url + "/1"))
                await asyncio.wait_for(closing.wait(), TIMEOUT)
                await cancel(task)
                assert pools._current.users == 0
                for target in ("/2", "/3"):
                    assert (await client.post(server.url + target)).status_code == 200
                    server_verifier.forget()
                assert pools._retired == []

        asyncio.run(program())
        assert server.requests == [b"/0", b"/2", b"/3"]


@every_library
def test_cancelled_while_several_pools_are_closed(library: str) -> None:
    """The others are closed all the same."""
    entered, closed = threading.Event(), list[str]()

    class Pool:
        def __init__(self, name: str) -> None:
            self.name = name

        async def aclose(self) -> None:
            if self.name == "hangs":
                entered.set()
                await asyncio.sleep(TIMEOUT)
            closed.append(self.name)

    with contextlib.closing(WireServer()) as server:
        kind: Any = library
        transport: Any = http_transports(kind).asynchronous(
            SimpleServerVerifier(server), tls_context(authority().pem)
        )

        async def program() -> None:
            pools = [Pool(name) for name in ("first", "hangs", "last")]
            task = asyncio.ensure_future(transport.close_all(pools))
            await until(entered.is_set)
            await cancel(task)

        asyncio.run(program())
    assert sorted(closed) == ["first", "last"]


@every_library
def test_cancelled_by_a_scope_of_anyio(library: str) -> None:
    """Scopes that cancel each await let the connection be closed all the same."""
    with serving(hang=True) as server:

        async def program() -> None:
            async with client_of(library, SimpleServerVerifier(server)) as client:
                with anyio.move_on_after(0.1) as scope:
                    await client.post(server.url, content=b"secret")
                assert scope.cancelled_caught
                await asyncio.to_thread(server.connections[0].ended.wait, TIMEOUT)

        asyncio.run(program())
        assert server.connections[0].ended.is_set()
        assert server.received == b""


@every_library
def test_cancelled_while_an_answer_is_read(library: str) -> None:
    """The connection is closed, since the rest of the answer is on it."""
    started = threading.Event()

    def answer(secured: Any, head: bytes, _body: bytes) -> None:
        if b" /slow " in head:
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
            started.set()
            secured.recv(1)
            raise ConnectionError
        secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with serving(answer=answer) as server:

        async def program() -> None:
            async with client_of(library, SimpleServerVerifier(server)) as client:
                task = asyncio.ensure_future(client.get(server.url + "/slow"))
                await until(started.is_set)
                await cancel(task)
                assert (await client.get(server.url + "/fast")).text == "ok"

        asyncio.run(program())
        assert [one.requests for one in server.connections] == [[b"/slow"], [b"/fast"]]


@every_library
def test_many_tasks_share_one_proof(library: str) -> None:
    """Of 32 requests of one loop every other is cancelled: one proof, and the others are sent."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)

        async def program() -> None:
            async with client_of(library, server_verifier) as client:
                tasks = [
                    asyncio.ensure_future(client.post(f"{server.url}/{number}"))
                    for number in range(32)
                ]
                await until(lambda: server.questions)
                for task in tasks[1::2]:
                    task.cancel()
                found: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
                assert [one.status_code for one in found[::2]] == [200] * 16

        asyncio.run(program())
        assert {f"/{number}".encode() for number in range(0, 32, 2)} <= set(server.requests)
        assert server_verifier.proofs == 1


@every_library
def test_loops_other_than_asyncio_are_refused(library: str) -> None:
    """Another event loop is refused before a connection."""
    server = WireServer()
    with contextlib.closing(server):
        kind: Any = library
        transport = http_transports(kind).asynchronous(
            SimpleServerVerifier(server), tls_context(authority().pem)
        )
        request = import_module(library).Request("GET", server.url)
        call = transport.handle_async_request(request)
        with raises(UsageError, "not_applicable", part="asyncio"):
            call.send(None)
        assert server.connections == []
