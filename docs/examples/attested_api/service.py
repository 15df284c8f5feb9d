"""An API in a TEE that clients can verify before they send anything.

It keeps an ordinary certificate, such as one of Let's Encrypt. The middleware answers at
`/.well-known/attestkit` with evidence about the certificate's key, over the client's nonce.
"""

import argparse
import socket
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI

import attestkit
from attestkit.client.asgi import Attested

app = FastAPI(title="Private word count")


@app.post("/v1/count")
async def count(text: Annotated[str, Body(media_type="text/plain")]) -> int:
    """Return the number of words of a text that must not be known to anyone else."""
    return len(text.split())


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=8443, help="0 selects a free port")
    parser.add_argument("--certificate", type=Path, required=True, help="PEM, the leaf first")
    parser.add_argument("--key", type=Path, required=True, help="its private key")
    parser.add_argument("--backend", help="default: $ATTESTKIT_BACKEND, else the detected hardware")
    parser.add_argument("--seed-file", type=Path, help="simulator only: its seed")
    args = parser.parse_args()
    options: dict[str, Any] = {"seed": args.seed_file.read_bytes()} if args.seed_file else {}
    with (
        attestkit.open(args.backend, **options) as tee,
        socket.create_server(("127.0.0.1", args.port)) as listener,
    ):
        attested = Attested(app, tee, tls=args.certificate, name="word count")
        config = uvicorn.Config(
            attested, ssl_certfile=args.certificate, ssl_keyfile=args.key, log_level="warning"
        )
        print(f"ready https://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
