"""TLS listener on loopback for an ASGI application, and the CA that issues its certificates.

It runs in the event loop of a test session.
"""

import asyncio
import os
import socket
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from attestkit._argument_checks import needs_extra
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca, issue_leaf
from attestkit._system.clock import current_time
from attestkit.errors import UsageError
from attestkit.keys.hkdf import derive_p256
from attestkit.ra_tls.issuance import Issued, issue
from attestkit.report_data import ReportData

if TYPE_CHECKING:
    from attestkit.attestation import Attestation
    from attestkit.client.asgi import AsgiApp
    from attestkit.serve.event_loop_thread import EventLoopThread
    from attestkit.testing.tee import SimulatedTee

_NAMES: Final = ("localhost", "127.0.0.1", "::1")
_LIFETIME: Final = 82_800  # seconds: with _BACKDATED under ra_tls.MAX_LIFETIME
_BACKDATED: Final = 300  # seconds, for clients whose clock is slow


def new_key() -> P256Key:
    """Return a new random P-256 key."""
    return derive_p256(os.urandom(32))


class LoopbackCa:
    """A new CA, whose certificates are for localhost and valid for 23 hours; `pem` is its own."""

    def __init__(self) -> None:
        now = int(current_time())
        self._begin, self._end = now - _BACKDATED, now + _LIFETIME
        self._key = new_key()
        der = issue_ca(
            key=self._key,
            subject="attestkit tests",
            path_length=0,
            not_before=self._begin,
            not_after=self._end,
        )
        self.pem: str = certificate_pem(der)

    def issue(self) -> Issued:
        """Issue a server's certificate for a new key; return the key and the chain with the CA."""
        key = new_key()
        leaf = issue_leaf(
            public_key=key,
            subject=_NAMES[0],
            alt_names=_NAMES,
            server_auth=True,
            not_before=self._begin,
            not_after=self._end,
            authority_key_id=True,
            ca_cert=self.pem,
            ca_key=self._key,
        )
        return Issued(key.pkcs8_pem, (certificate_pem(leaf), self.pem))

    def issue_ra_tls(self, tee: "SimulatedTee", about: P256Key | None = None) -> Issued:
        """Issue an RA-TLS certificate, with evidence, for a new key; return key and chain.

        Args:
            tee: The TEE that makes the evidence.
            about: Key that the evidence names, as in an attacker's certificate; None: the new key.

        Raises:
            AttestKitError: As for `SimulatedTee.attest`.
        """

        def attest(*, report_data: bytes) -> "Attestation":
            if about is not None:
                report_data = ReportData.bind(ReportData.RATLS_CERT, about.spki_der)
            return tee.attest(report_data=report_data)

        return issue(
            subject=_NAMES[0],
            alt_names=_NAMES,
            attest=attest,
            usage_ra_tls=True,
            server_auth=True,
            not_before=self._begin,
            not_after=self._end,
            ca_cert=self.pem,
            ca_key=self._key,
        )


ADDRESS: Final = "127.0.0.1"
"""Address of the listeners."""

_MAX_RECORDED: Final = 1 << 20  # bytes of a connection
_CLOSE_SECONDS: Final = 5.0  # for the app's own shutdown
_IDLE_SECONDS: Final = 60  # clients close idle connections first: httpx after five seconds


class TlsListener:
    """A listener on a free port of 127.0.0.1, which accepts connections once it is created.

    The caller may load a new certificate into the context: later connections use it.

    Args:
        app: The application; its lifespan events are sent.
        context: The server's context.
        thread: Thread with the event loop.

    Attributes:
        received: Decrypted bytes of each connection, at most 1 MiB each.
        port: The TCP port.

    Raises:
        UsageError: If uvicorn is not installed, or the application refuses to start.
    """

    def __init__(self, app: "AsgiApp", context: ssl.SSLContext, thread: "EventLoopThread") -> None:
        self.received: list[bytearray] = []
        self._thread = thread
        self._socket = socket.create_server((ADDRESS, 0))
        self.port: int = self._socket.getsockname()[1]
        try:
            self._server = _UvicornServer(app, self.received)
            thread.run(lambda: self._server.start(self._socket, context))
        except BaseException:
            self._socket.close()
            raise

    def disconnect(self) -> None:
        """Abort all connections."""
        self._thread.run(self._server.abort)

    def close(self) -> None:
        """Stop listening, abort all connections, and shut the application down."""
        self._thread.run(self._server.stop)


class _UvicornServer:
    """uvicorn's protocol on a socket, without uvicorn's own server, which polls."""

    def __init__(self, app: "AsgiApp", received: list[bytearray]) -> None:
        with needs_extra("AttestedServer", "serve"):
            import uvicorn
            from uvicorn.protocols.http.auto import AutoHTTPProtocol
            from uvicorn.server import ServerState

        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
        )
        config.load()
        self._config = config
        self._state = ServerState()
        self._lifespan = config.lifespan_class(config)
        self._base: Any = AutoHTTPProtocol
        self._received = received

    async def start(self, listening: socket.socket, context: ssl.SSLContext) -> None:
        """Start the application, then accept connections by TLS on the socket `listening`."""
        await self._lifespan.startup()
        if self._lifespan.should_exit:
            raise UsageError(
                "app: its startup failed; see the log of uvicorn.error", reason="wrong_value"
            )
        protocol, received = _recording(self._base), self._received
        arguments = {"config": self._config, "server_state": self._state}

        def connect() -> Any:  # noqa: ANN401 - as above
            log = bytearray()
            received.append(log)
            made: Any = protocol(**arguments, app_state=self._lifespan.state)
            made.log = log
            return made

        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(connect, sock=listening, ssl=context)

    async def abort(self) -> None:
        """Abort all connections; return when they are closed."""
        connections = set(self._state.connections)
        for connection in connections:
            connection.transport.abort()
        while connections & self._state.connections:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0)

    async def stop(self) -> None:
        """Close everything; requests in progress are cancelled."""
        self._listening.close()
        await self.abort()
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._lifespan.shutdown(), _CLOSE_SECONDS)


def _recording(base: Any) -> Any:  # noqa: ANN401 - uvicorn chooses the class
    """Return a subclass of the protocol `base` that records the decrypted bytes it receives."""

    class Recording(base):  # type: ignore[misc] # as above
        log: bytearray

        def data_received(self, data: bytes) -> None:
            """Record decrypted bytes, at most 1 MiB of a connection, then process them."""
            self.log.extend(data[: max(0, _MAX_RECORDED - len(self.log))])
            super().data_received(data)

    return Recording
