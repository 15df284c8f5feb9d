"""The peer of the verifier service's benchmark: evidence is verified in the event loop.

`python raw_verifier.py ANCHOR COLLATERAL LENGTH` prints its port and serves every path by a plain
ASGI application under a plain uvicorn: it decodes the body, calls `Verifier.verify`, and responds
with LENGTH bytes. It checks no limit, counts nothing, and during a verification serves nobody else.
"""

import json
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from attestkit import Verifier
from attestkit.verifier import AppraisalPolicy

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


def application(verifier: Verifier, length: int) -> Application:
    """Return the application, whose responses have a body of `length` bytes."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % length)]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    response = {"type": "http.response.body", "body": bytes(length)}

    async def app(_: Message, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        evidence = bytes.fromhex(json.loads(body)["attestation"])
        verifier.verify(evidence, report_data=None)
        await send(start)
        await send(response)

    return app


def main() -> None:
    """Serve until killed."""
    anchor, collateral, length = sys.argv[1:]
    verifier = Verifier(
        trust_anchor=Path(anchor).read_text(encoding="ascii"),
        collateral=collateral,
        policy=AppraisalPolicy.development(),
    )
    config = uvicorn.Config(
        application(verifier, int(length)),
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        uvloop.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
