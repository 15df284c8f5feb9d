"""The peer of the server's benchmark: the same cryptography and as many bytes, and nothing else.

`python raw_asgi.py SOCKET METHOD=SIZE...` serves each method with a response of SIZE bytes, head
and body, by a plain ASGI application under a plain uvicorn. No request is parsed, no JSON written.
"""

import hmac
import sys
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

import coincurve
import uvicorn
import uvloop
from Crypto.Hash import keccak
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

ROOT = coincurve.PrivateKey(bytes(range(1, 33)))
QUOTING = ec.derive_private_key(12345, ec.SECP256R1())
ECDSA = ec.ECDSA(SHA256(), deterministic_signing=True)
PRK = hmac.digest(b"RATLS", bytes(32), "sha256")
NAME = b"\0\0\0\x13dstack-guest-v1-key\0\0\0\x09secp256k1\0\0\0\x06wallet"
SIGNED = bytes(632)  # header and body of a quote
HEAD = 106  # bytes of our status line and headers, without the digits of the length


def get_key() -> None:
    """Derive a key, and its public key, which the root key signs."""
    secret = hmac.digest(PRK, b"my/key/path\1", "sha256")
    public = coincurve.PublicKey.from_secret(secret).format()
    digest = keccak.new(data=b"signing:" + public.hex().encode(), digest_bits=256).digest()
    ROOT.sign_recoverable(digest, hasher=None)


def get_quote() -> None:
    """Sign a quote."""
    QUOTING.sign(SIGNED, ECDSA)


def sign() -> None:
    """Sign the hash of some data."""
    ROOT.sign_recoverable(sha256(b"data").digest(), hasher=None)


def info() -> None:
    """Sign nothing."""


def get_key_v1() -> None:
    """Derive a key of v1, and its public key, which the root key signs."""
    secret = hmac.digest(PRK, NAME + b"\1", "sha256")
    public = coincurve.PublicKey.from_secret(secret).format()
    claim = NAME + b"\0\0\0\x21" + public
    digest = keccak.new(data=claim, digest_bits=256).digest()
    ROOT.sign_recoverable(digest, hasher=None)


WORK = {
    "GetKey": get_key,
    "GetQuote": get_quote,
    "Sign": sign,
    "Info": info,
    "v1/GetKey": get_key_v1,
    "v1/Attest": get_quote,
    "v1/Info": info,
}


def application(sizes: dict[str, int]) -> Application:
    """Return the application whose methods answer `sizes` bytes."""
    routes = {}
    for name, size in sizes.items():
        length = size - HEAD - len(str(size - HEAD))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % length),
        ]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        body = {"type": "http.response.body", "body": bytes(length)}
        routes[f"/{name}"] = (WORK[name], start, body)

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        work, start, body = routes[scope["path"]]
        await receive()
        work()
        await send(start)
        await send(body)

    return app


def plain_server(app: Application, path: str | None = None) -> uvicorn.Server:
    """Return a server without extras, on a unix socket or a socket that is passed to `serve`."""
    config = uvicorn.Config(
        app,
        uds=path,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    return uvicorn.Server(config)


def main() -> None:
    """Serve until killed."""
    path, *words = sys.argv[1:]
    sizes = {name: int(size) for name, _, size in (word.partition("=") for word in words)}
    uvloop.run(plain_server(application(sizes), path).serve())


if __name__ == "__main__":
    main()
