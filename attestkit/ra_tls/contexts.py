"""SSL contexts whose connections judge the other side's evidence before anything is exchanged.

They are made for blocking sockets, asyncio and uvloop, and what is built on them. A client:

```python
context = ra_tls.client_context(verifier)
with httpx.Client(verify=context) as client:  # or httpx.AsyncClient
    response = client.get("https://10.0.0.7:8443/")
    result = ra_tls.peer(response.extensions["network_stream"])
```

`issued`, for whoever is asked for evidence, comes from a dstack guest agent, whose certificates
have evidence only if they are asked to:

```python
usages = {"usage_ra_tls": True, "usage_server_auth": True, "usage_client_auth": True}
with httpx.Client(transport=httpx.HTTPTransport(uds="/var/run/dstack.sock")) as agent:
    answer = agent.post("http://dstack/GetTlsKey", json={"subject": "my app", **usages})
issued = ra_tls.Issued.from_agent_response(answer.raise_for_status().json())
peer_ca = issued.certificate_chain[-1]  # where both sides are of the same app
```

or from this library, with a TEE (`attestkit.open()`) and the keys of the app:

```python
keys = AppKeys.load(".appkeys.json")
issued = ra_tls.issue(
    subject="my app",
    attest=tee.attest,
    ca_cert=keys.ca_cert,
    ca_key=keys.ca_key,
    usage_ra_tls=True,
    server_auth=True,
    client_auth=True,
)
```

A server under uvicorn; where `Config` takes no `ssl_context_factory` yet, `config.load()` and
`config.ssl = context` do the same. Its applications find the client in their scope:

```python
class Protocol(HttpToolsProtocol):  # or H11Protocol
    def connection_made(self, transport):
        super().connection_made(transport)
        app, result = self.app, ra_tls.peer(transport)

        async def attested(scope, receive, send):
            state = {**scope.get("state", {}), "peer": result}
            await app({**scope, "state": state}, receive, send)

        self.app = attested


context = ra_tls.server_context(verifier, issued=issued, peer_ca=peer_ca)
uvicorn.Config(app, http=Protocol, ssl_context_factory=lambda *_: context)
```

The check runs inside the handshake, in the thread of the event loop: about a millisecond. A
verifier that fetches collateral lets the loop wait for it, once per kind of platform and as long as
its cache holds; hand collateral in, or a cache that is filled, where that matters.

What the peer is called is not checked: a TD's agent signs whatever name the app asks for. Who may
be spoken with is for the verifier's policy, so one that asks for an app id or for measurements;
the default one accepts every app on a sound platform.
"""

import contextlib
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.app_certificates import certificate_pem
from attestkit.errors import FormatError, UnsupportedError, UsageError
from attestkit.ra_tls.certificate import Issued
from attestkit.ra_tls.connection import AttestedObject, AttestedSocket

if TYPE_CHECKING:
    from attestkit.verifier import Verifier

__all__ = ["client_context", "server_context"]

_OPTIONS: Final = ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def server_context(
    verifier: "Verifier | None" = None,
    *,
    issued: Issued | None = None,
    peer_ca: str | bytes | None = None,
) -> ssl.SSLContext:
    """Return the context of a server: TLS 1.3, without tickets.

    Args:
        verifier: Judges the clients' evidence; None takes every client and asks for no certificate.
        issued: The server's key and certificates, with evidence in the first one. None: those that
            the caller loads into the context.
        peer_ca: PEM of the authorities whose clients may come, such as the app's own (the last
            certificate of GetTlsKey). OpenSSL, and with it Python, asks a client for a certificate
            only if its authority is known. It checks the chain by the system's clock, and that the
            certificate allows client authentication or does not say.

    Raises:
        UsageError: There is only one of `verifier` and `peer_ca`; or `issued` is no `Issued`, or
            its key and certificate do not belong together.
        FormatError: There is something else than PEM in `peer_ca`.
        UnsupportedError: The system keeps no files in memory: it is not Linux, or without /proc.
    """
    if verifier is not None and peer_ca is None:
        raise UsageError(
            "a server sees a client's certificate, and so its evidence, only if it knows who "
            "issued it: hand in peer_ca, the authority of the clients' app in PEM"
        )
    if verifier is None and peer_ca is not None:
        raise UsageError("peer_ca alone proves no TEE: hand in a verifier for the evidence, too")
    context = _context(ssl.PROTOCOL_TLS_SERVER, verifier, issued, peer_ca)
    context.num_tickets = 0  # in TLS 1.3 OP_NO_TICKET only has them kept here
    return context


def client_context(
    verifier: "Verifier",
    *,
    issued: Issued | None = None,
    server_ca: str | bytes | None = None,
) -> ssl.SSLContext:
    """Return the context of a client: TLS 1.3, every server judged by its evidence.

    Args:
        verifier: Judges the servers' evidence.
        issued: The client's key and certificates, for servers that ask for them. A server sees the
            certificate, so which app this is, before its own evidence is judged.
        server_ca: PEM of the authorities that a server's certificate must lead to besides, such as
            its app's. None: any, for it is the evidence that counts.

    Raises:
        UsageError: There is no verifier; or `issued` is no `Issued`, or its key and certificate do
            not belong together.
        FormatError: There is something else than PEM in `server_ca`.
        UnsupportedError: The system keeps no files in memory: it is not Linux, or without /proc.
    """
    if not hasattr(verifier, "verify"):
        raise UsageError("a client needs a Verifier for its servers")
    return _context(ssl.PROTOCOL_TLS_CLIENT, verifier, issued, server_ca)


def _context(
    protocol: int,
    verifier: "Verifier | None",
    issued: Issued | None,
    authorities: str | bytes | None,
) -> ssl.SSLContext:
    # Not create_default_context, which would log keys where the environment says so.
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= _OPTIONS
    # A name in the certificate is the issuer's word, and the agent issues any; see the module.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if authorities is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        # The app's authority is trusted by itself, whoever is above it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=_pem(authorities))
    if issued is not None:
        _load(context, issued)
    if verifier is not None:
        _judge_peers(context, verifier)
    return context


def _judge_peers(context: ssl.SSLContext, verifier: "Verifier") -> None:
    """Let the context's connections judge: the verifier is theirs, whatever context they get."""

    class Socket(AttestedSocket):
        _verifier = verifier

    class Object(AttestedObject):
        _verifier = verifier

    context.sslsocket_class, context.sslobject_class = Socket, Object
    # Python 3.11.2 sets it with OpenSSL 3, and then a truncated stream ends in order (gh-95494).
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)


def _pem(certificates: str | bytes) -> str:
    """Return certificates in PEM without what may be written around them."""
    if isinstance(certificates, bytes):
        try:
            certificates = certificates.decode("ascii")
        except UnicodeDecodeError as error:
            raise FormatError("PEM is ASCII text", offset=error.start) from error
    return "".join(map(certificate_pem, split_pem(certificates)))


def _load(context: ssl.SSLContext, issued: Issued) -> None:
    if not isinstance(issued, Issued):  # never shown, for it may be a key
        raise UsageError(
            f"issued is a ra_tls.Issued, not {type(issued).__name__}; make one with "
            "ra_tls.issue, or Issued.from_agent_response"
        )
    unfit = UsageError("key and certificates in issued are not PEM, or do not belong together")
    try:
        content = "".join((issued.key_pem, *issued.certificate_chain)).encode()
    except (TypeError, UnicodeError):
        raise unfit from None  # the cause may hold the key
    with _file_in_memory(content) as path:
        try:
            context.load_cert_chain(path, password="")
        except OSError as error:
            raise unfit from error


@contextlib.contextmanager
def _file_in_memory(content: bytes) -> Iterator[str]:
    """Yield the path of an unnamed file in memory: ssl loads keys from files only.

    So no disk ever has the key, and no cleaning up can be missed.
    """
    try:
        descriptor = os.memfd_create("attestkit-tls-key", os.MFD_CLOEXEC)
    except (AttributeError, OSError) as error:
        raise UnsupportedError("a key is loaded through memfd_create, which is not here") from error
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(content)
        path = f"/proc/self/fd/{descriptor}"
        if not Path(path).exists():
            raise UnsupportedError("a key is loaded through /proc/self/fd, which is not here")
        yield path
