"""A program that serves HTTP over mutual RA-TLS, on a port per certificate, until stdin ends.

Its first line of output is JSON: the port for each kind of certificate, the sound one under "".
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
from tests.verifier import parcels

if TYPE_CHECKING:
    from attestkit.ra_tls import Issued
    from attestkit.verifier import AttestationResult

COMPOSE: Final = b'{"manifest_version":2,"name":"the server","runner":"bash"}'


class Protocol(HttpToolsProtocol):
    """HTTP whose applications find the client's result in their scope, as the guide tells."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask once per connection who is there."""
        super().connection_made(untyped(transport))  # its kind is the loop's
        app, result = self.app, ra_tls.peer(untyped(transport))

        async def attested(scope: Any, receive: Any, send: Any) -> None:
            state = {**scope.get("state", {}), "peer": result}
            await app({**scope, "state": state}, receive, send)

        self.app = attested


class Application:
    """Answers with the client's app id, and how many requests there have been on all ports."""

    def __init__(self) -> None:
        self.requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, whose body is echoed."""
        self.requests += 1
        peer: AttestationResult = scope["state"]["peer"]
        assert peer.app_info is not None
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        body += message["body"]
        answer = {
            "app_id": peer.app_info.app_id.hex(),
            "simulated": peer.simulated,
            "requests": self.requests,
            "body": body.decode(),
        }
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


def _config(application: Application, context: ssl.SSLContext, *, new: bool) -> uvicorn.Config:
    """Configure uvicorn in the new way, or in the one that older ones have."""
    options: dict[str, Any] = {
        "http": Protocol,
        "lifespan": "off",
        "log_level": "critical",
        "log_config": None,
    }
    if new:
        return uvicorn.Config(application, ssl_context_factory=lambda *_: context, **options)
    config = uvicorn.Config(application, **options)
    config.load()
    config.ssl = context
    return config


async def _serve(certificates: "dict[str, Issued]") -> None:
    application, servers, ports, sockets = Application(), [], {}, []
    for name, issued in certificates.items():
        context = ra_tls.server_context(parcels.verifier(), issued=issued, peer_ca=tds.CA)
        config = _config(application, context, new=not name)
        sockets.append(socket.create_server(("127.0.0.1", 0)))
        ports[name] = sockets[-1].getsockname()[1]
        servers.append(uvicorn.Server(config))
    sys.stdout.write(f"{json.dumps(ports)}\n")  # the ready line: the sockets listen already
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
    """Serve with a simulated TD's certificate, and with each that is unsound."""
    with parcels.attester(app_compose=COMPOSE) as tee:
        certificates = {"": tds.issued(tee.attest)}
    certificates |= {what: make() for what, make in tds.UNSOUND.items()}
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(_serve(certificates))
    finally:
        loop.close()


if __name__ == "__main__":
    main()
