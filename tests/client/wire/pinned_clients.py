"""Programs with pinned contexts, and what their errors carry."""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
import uvloop

from attestkit.client.wire.attested_tls import pinned_context
from attestkit.ra_tls import PeerRefusedError
from tests.client.wire.authority import authority, identity
from tests.client.wire.servers import TIMEOUT, WireServer
from tests.client.wire.simple_verifier import SimpleServerVerifier

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
every_loop = pytest.mark.parametrize("loop", list(LOOPS))


def run(loop: str, program: Coroutine[Any, Any, None]) -> None:
    """Run a program on an event loop of a kind."""
    made = LOOPS[loop]()
    errors: list[Any] = []
    made.set_exception_handler(lambda _, context: errors.append(context))
    try:
        made.run_until_complete(asyncio.wait_for(program, TIMEOUT))
        made.run_until_complete(made.shutdown_asyncgens())
        # A TLS transport ends once the peer has closed, for which aiohttp does not wait.
        made.run_until_complete(asyncio.sleep(0.05))
    finally:
        made.close()
    assert errors == []


def context_of(server_verifier: SimpleServerVerifier) -> ssl.SSLContext:
    """Return the context for the server of a verifier."""
    return pinned_context(server_verifier, authority().pem)


def proven(server: WireServer, name: str = "a") -> SimpleServerVerifier:
    """Return a server verifier that has proven a key before."""
    server_verifier = SimpleServerVerifier(server, name)
    server_verifier.accepted.add(identity(name).spki_sha256)
    return server_verifier


def session_of(server_verifier: SimpleServerVerifier, **options: Any) -> aiohttp.ClientSession:
    """Return a session of aiohttp for the server of a verifier."""
    connector = aiohttp.TCPConnector(ssl=context_of(server_verifier))
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, **options)


def refusal_in(error: BaseException) -> PeerRefusedError | None:
    """Return the refusal among the causes of an error."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, PeerRefusedError):
        found = found.__cause__ or found.__context__
    return found


async def refused(call: Callable[[], Any]) -> PeerRefusedError:
    """Return the refusal in the error that a call of aiohttp raises."""
    with pytest.raises(aiohttp.ClientError) as caught:
        async with call() as answer:
            await answer.read()
    error = refusal_in(caught.value)
    assert error is not None
    return error
