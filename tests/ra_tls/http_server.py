"""Serve HTTP over mutual RA-TLS, on one port per certificate, until stdin is closed.

The first line of output is JSON: the port per certificate; "" is the valid one.
"""

import asyncio
import json
import socket
import ssl
import sys
from typing import TYPE_CHECKING, Any, Final

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from attestkit import ra_tls
from tests.ra_tls import tds
from tests.untyped import untyped
from tests.verifier.platforms import intel

if TYPE_CHECKING:
    from attestkit.ra_tls import Issued
    from attestkit.verifier import AttestationResult

COMPOSE: Final = b'{"manifest_version":2,"name":"the server","runner":"bash"}'


class Protocol(HttpToolsProtocol):
    """HTTP protocol that stores the client's attestation result in the scope, as in the guide."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Get the attestation result once per connection."""
        super().connection_made(untyped(transport))  # the transport type depends on the loop
        app, result = self.app, ra_tls.peer(untyped(transport))

        async def app_with_peer(scope: Any, receive: Any, send: Any) -> None:
            state = {**scope.get("state", {}), "peer": result}
            await app({**scope, "state": state}, receive, send)

        self.app = app_with_peer


class Application:
    """Application that returns the client's app id and the number of requests on all ports."""

    def __init__(self) -> None:
        self.requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Respond to a request and echo its body."""
        self.requests += 1
        peer: AttestationResult = scope["state"]["peer"]
        assert peer.app_info is not None
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        body += message["body"]
        content = {
            "app_id": peer.app_info.app_id.hex(),
            "simulated": peer.simulated,
            "requests": self.requests,
            "body": body.decode(),
        }
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(content).encode()})


def _config(application: Application, context: ssl.SSLContext) -> uvicorn.Config:
    """Configure uvicorn with an SSL context, as in the guide."""
    return uvicorn.Config(
        application,
        http=Protocol,
        lifespan="off",
        log_level="critical",
        log_config=None,
        ssl_context_factory=lambda *_: context,
    )


async def _serve(certificates: "dict[str, Issued]") -> None:
    application, servers, ports, sockets = Application(), [], {}, []
    for name, issued in certificates.items():
        context = tds.server_context(issued)
        config = _config(application, context)
        sockets.append(socket.create_server(("127.0.0.1", 0)))
        ports[name] = sockets[-1].getsockname()[1]
        servers.append(uvicorn.Server(config))
    sys.stdout.write(f"{json.dumps(ports)}\n")  # ready line: the sockets are listening
    sys.stdout.flush()
    running = [
        asyncio.ensure_future(server.serve([listener]))
        for server, listener in zip(servers, sockets, strict=True)
    ]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*running)


def main() -> None:
    """Serve with the certificate of a simulated TD, and with that of a debug TD."""
    with intel.attester(app_compose=COMPOSE) as tee:
        certificates = {"": tds.issue(tee.attest), "invalid": tds.issue(tds.attest_debug)}
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(_serve(certificates))
    finally:
        loop.close()


if __name__ == "__main__":
    main()
