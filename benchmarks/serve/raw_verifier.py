"""The peer of the verifier service's benchmark: evidence is verified in the event loop.

`python -m benchmarks.serve.raw_verifier ANCHOR COLLATERAL LENGTH` prints its port and serves every
path by a plain ASGI application under a plain uvicorn: it decodes the body, calls
`Verifier.verify`, and responds with LENGTH bytes. It has no limits and no
metrics, and other requests wait while it verifies.
"""

import json
import socket
import sys
from pathlib import Path

import uvloop

from attestkit import Verifier
from attestkit.verifier import AppraisalPolicy
from benchmarks.serve.raw_asgi import Application, Message, Receive, Send, plain_server


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
    server = plain_server(application(verifier, int(length)))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        uvloop.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main()
