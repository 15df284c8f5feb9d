"""TLS for a listener: handshakes within limits, and the client's certificate in the ASGI scope.

Each connection is a plain one until its handshake has ended, so that connections in a handshake
are counted, and closed if there are too many. The certificate of a client is in the scope as in
the ASGI TLS extension: `scope["extensions"]["tls"]["client_cert_chain"]`, of which only the first
one is known.
"""

import asyncio
import logging
import ssl
import types
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, Final, TypeAlias, TypeVar, cast

from attestkit.serve.http.asgi import App, Scope
from attestkit.serve.http.listener_state import ListenerConfig, ListenerState
from attestkit.serve.http.protocol import HttpProtocol

T = TypeVar("T")

TlsContexts: TypeAlias = Callable[[], ssl.SSLContext]
"""Returns the server's context for the next connection."""

SERVER_CONTEXT: Final = "attestkit.server_context"
"""Key in `scope["extensions"]["tls"]`: the server's context of the connection."""

TRANSPORT: Final = "attestkit.transport"
"""Key in `scope["extensions"]["tls"]`: the connection's transport, to simulate its failure."""

_SHUTDOWN_SECONDS: Final = 1.0  # for the client's close_notify
_logger = logging.getLogger("attestkit.serve")
_NO_ANSWER: Final = (OSError, asyncio.TimeoutError)  # of a handshake; ssl.SSLError is an OSError


class TlsConfig(ListenerConfig):
    """uvicorn's configuration of a listener with TLS.

    `contexts` returns the TLS context of the next connection.
    """

    def __init__(self, app: App, shared: ListenerState, contexts: TlsContexts) -> None:
        super().__init__(app, shared, TlsAcceptor)
        self.contexts = contexts
        self.handshakes = 0  # connections in a handshake


class TlsHttpProtocol(HttpProtocol):
    """One connection whose handshake has ended."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept the connection; add the client's certificate to the scopes of its requests."""
        super().connection_made(transport)
        self.scope_extras: Mapping[str, Any] = {"extensions": {"tls": _describe(transport)}}

    def eof_received(self) -> bool:  # type: ignore[override]  # as in HttpProtocol
        """Finish as `HttpProtocol`; a TLS connection cannot stay half-open."""
        super().eof_received()
        return False

    def end_output(self) -> None:
        """Do nothing: a TLS connection is closed in both directions."""


class TlsAcceptor(asyncio.Protocol):
    """asyncio protocol of a TLS connection until its handshake ends.

    `TlsHttpProtocol` takes over then.

    Args:
        config: Configuration of the listener.
        kwargs: Arguments of `HttpProtocol`; `server_state` is required, `_loop` defaults to the
            running loop.
    """

    def __init__(self, config: TlsConfig, **kwargs: Any) -> None:
        self._config = config
        self._loop = kwargs.get("_loop") or asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = kwargs["server_state"].tasks
        self._http = TlsHttpProtocol(config, **kwargs)
        self._received: list[bytes] = []
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake, or close the connection if there are too many."""
        plain = cast("asyncio.Transport", transport)
        if self._config.handshakes >= self._config.shared.limits.connections:
            plain.abort()
            return
        self._config.handshakes += 1
        task = self._loop.create_task(self._upgrade(plain))
        self._tasks.add(task)  # a shutdown ends it
        task.add_done_callback(self._tasks.discard)

    async def _upgrade(self, plain: asyncio.Transport) -> None:
        """Do the handshake, then hand the connection over to HTTP; close it if that fails."""
        try:
            await self._do_handshake(plain)
        except _NO_ANSWER:
            plain.abort()
        except Exception:  # a failure of this server
            _logger.exception("TLS handshake failed")
            plain.abort()
        except BaseException:
            plain.abort()
            raise
        finally:
            self._config.handshakes -= 1

    async def _do_handshake(self, plain: asyncio.Transport) -> None:
        handshake = self._loop.start_tls(
            plain,
            self,
            self._config.contexts(),
            server_side=True,
            ssl_handshake_timeout=self._config.shared.limits.head_seconds,
            ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
        )
        # Bytes that were received before this task began.
        early, self._received = b"".join(self._received), []
        tls = await _begin(handshake, lambda: self._loop.call_soon(_feed, plain, early))
        if tls is None or tls.is_closing() or self._ended:
            plain.abort()
            return
        tls.set_protocol(self._http)
        self._http.connection_made(tls)
        received, self._received = self._received, []
        if received and not tls.is_closing():
            self._http.data_received(b"".join(received))

    def data_received(self, data: bytes) -> None:
        """Store `data`, sent by the client right after its handshake, until HTTP reads it."""
        self._received.append(data)

    def eof_received(self) -> bool:
        """Close a connection that ends in its handshake."""
        self._ended = True
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's interface
        """Drop what was received; `exc` is ignored."""
        self._ended = True
        self._received.clear()


@types.coroutine
def _begin(work: Coroutine[Any, Any, T], then: Callable[[], object]) -> Generator[Any, Any, T]:
    """Return the result of `work`, and call `then` when it waits for the first time.

    `start_tls` has then scheduled that the TLS protocol reads. What is scheduled now follows
    immediately: the event loop reads no other bytes before.
    """
    steps = work.__await__()
    waiting = next(steps)
    then()
    try:
        yield waiting
    except BaseException as error:
        work.throw(error)
        raise
    return (yield from steps)


def _feed(plain: asyncio.Transport, data: bytes) -> None:
    """Give `data` to the TLS protocol of the connection `plain`, as its transport does."""
    protocol = cast("asyncio.BufferedProtocol", plain.get_protocol())
    while data and not plain.is_closing():
        buffer = memoryview(protocol.get_buffer(len(data)))
        size = min(len(buffer), len(data))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]


def client_certificate(scope: Scope) -> str | None:
    """Return the client's certificate in PEM; None if it has presented none."""
    chain = scope.get("extensions", {}).get("tls", {}).get("client_cert_chain", ())
    return chain[0] if chain else None


def _describe(transport: asyncio.BaseTransport) -> dict[str, Any]:
    """Return the TLS extension of the connection's scopes."""
    connection: ssl.SSLObject = transport.get_extra_info("ssl_object")
    der = connection.getpeercert(binary_form=True)
    return {
        "client_cert_chain": () if der is None else (ssl.DER_cert_to_PEM_cert(der),),
        SERVER_CONTEXT: connection.context,
        TRANSPORT: transport,
    }
