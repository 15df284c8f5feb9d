"""A service of a TEE with GPUs: it returns evidence of CPU and GPUs over a client's nonce.

The GPUs get a nonce that is derived from the client's, and the CPU's report data are a hash of the
client's nonce and the evidence of the GPUs. The CPU thus signs which GPUs it talks to.
"""

import argparse
import socket
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Response

import attestkit
from attestkit import Attester
from attestkit.errors import AttestKitError

Nonce = Annotated[str, Query(pattern="^[0-9a-f]{64}$", description="32 random bytes in hex")]


def create_app(tee: Attester) -> FastAPI:
    """Return the application; add the routes of your model to it."""
    app = FastAPI(title="Private inference")

    @app.get("/attestation", response_class=Response)
    def attestation(nonce: Nonce) -> Response:  # not async: the devices take up to some seconds
        """Return evidence of this machine and its GPUs, in CBOR."""
        try:
            evidence = tee.attest(nonce=bytes.fromhex(nonce), gpu=True)
        except AttestKitError as error:  # such as a device that is busy
            raise HTTPException(503, "no evidence; try again") from error
        return Response(evidence.to_bytes("cbor"), media_type="application/cmw+cbor")

    return app


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0 selects a free port")
    parser.add_argument("--backend", help="default: $ATTESTKIT_BACKEND, else the detected hardware")
    parser.add_argument("--seed-file", type=Path, help="simulator only: its seed")
    parser.add_argument("--gpus", type=int, help="simulator only: the number of GPUs")
    args = parser.parse_args()
    options: dict[str, Any] = {"gpus": args.gpus} if args.gpus else {}
    if args.seed_file:
        options["seed"] = args.seed_file.read_bytes()
    with (
        attestkit.open(args.backend, **options) as tee,
        socket.create_server(("127.0.0.1", args.port)) as listener,
    ):
        config = uvicorn.Config(create_app(tee), log_level="warning")
        print(f"ready http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
