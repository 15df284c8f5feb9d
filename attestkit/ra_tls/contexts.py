"""SSL contexts whose connections verify the peer's evidence before data is exchanged.

They work with blocking sockets, asyncio and uvloop, and libraries that use these. A client:

```python
context = ra_tls.client_context(verifier)
with httpx.Client(verify=context) as client:  # or httpx.AsyncClient
    response = client.get("https://10.0.0.7:8443/")
    result = ra_tls.peer(response.extensions["network_stream"])
```

The argument `issued` is the key and certificate of this side of the connection. It comes from a
dstack guest agent, which includes evidence only on request:

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

A server with uvicorn; in versions without `ssl_context_factory`, use `config.load()` and
`config.ssl = context`. Its applications get the client's result in their scope:

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

The verification runs in the thread of the event loop and takes about a millisecond. A verifier that
fetches collateral blocks the loop meanwhile, once per kind of platform until its cache expires; if
that matters, pass collateral or a filled cache.

The peer's name is not verified: a TD's agent certifies any name that the app requests. Restrict the
accepted apps with the verifier's policy, by app ID or measurements; the default policy accepts
every app on an up-to-date platform.
"""

import contextlib
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attestkit._argument_checks import wrong_type
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.app_certificates import certificate_pem
from attestkit.errors import FormatError, UnsupportedError, UsageError
from attestkit.ra_tls.certificate import Issued
from attestkit.ra_tls.connection import AttestedObject, AttestedSocket

if TYPE_CHECKING:
    from attestkit.verifier import Verifier

_OPTIONS: Final = ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def server_context(
    verifier: "Verifier | None" = None,
    *,
    issued: Issued | None = None,
    peer_ca: str | bytes | None = None,
) -> ssl.SSLContext:
    """Return a server's context: TLS 1.3, without session tickets.

    Args:
        verifier: Verifier of the clients' evidence. None accepts all clients and requests no
            certificate.
        issued: The server's key and certificates, with evidence in the first certificate. None: the
            caller loads key and certificates into the context.
        peer_ca: CA certificates of the accepted clients in PEM, such as that of the app (the last
            certificate of GetTlsKey). OpenSSL needs CA certificates in order to request a
            certificate from the client. It verifies the client's chain with the system clock, and
            the extended key usage, if present.

    Raises:
        UsageError: If only one of `verifier` and `peer_ca` is given, `issued` is not an `Issued`,
            or its key does not belong to its certificate.
        FormatError: If `peer_ca` is not PEM.
        UnsupportedError: If memfd_create or /proc is not available.
    """
    if verifier is not None and peer_ca is None:
        message = "peer_ca: missing; pass the CA certificates of the clients in PEM"
        raise UsageError(message, reason="missing")
    if verifier is None and peer_ca is not None:
        message = "verifier: missing, and peer_ca alone does not prove a TEE; pass a Verifier"
        raise UsageError(message, reason="missing")
    context = _context(ssl.PROTOCOL_TLS_SERVER, verifier, issued, peer_ca)
    context.num_tickets = 0  # in TLS 1.3, OP_NO_TICKET only makes tickets stateful
    return context


def client_context(
    verifier: "Verifier",
    *,
    issued: Issued | None = None,
    server_ca: str | bytes | None = None,
) -> ssl.SSLContext:
    """Return a client's context: TLS 1.3, with verification of the server's evidence.

    Args:
        verifier: Verifier of the servers' evidence.
        issued: The client's key and certificates, for servers that request them. The server
            receives the certificate, with the app's identity, before its evidence is verified.
        server_ca: CA certificates in PEM, such as that of the server's app; the server's
            certificate chain must lead to one of them. None does not verify the chain.

    Raises:
        UsageError: If `verifier` is not a Verifier, `issued` is not an `Issued`, or its key does
            not belong to its certificate.
        FormatError: If `server_ca` is not PEM.
        UnsupportedError: If memfd_create or /proc is not available.
    """
    if not hasattr(verifier, "verify"):
        raise wrong_type("verifier", "a Verifier", verifier)
    return _context(ssl.PROTOCOL_TLS_CLIENT, verifier, issued, server_ca)


def _context(
    protocol: int,
    verifier: "Verifier | None",
    issued: Issued | None,
    authorities: str | bytes | None,
) -> ssl.SSLContext:
    # Not create_default_context, which writes keys to SSLKEYLOGFILE.
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= _OPTIONS
    # The agent issues certificates for any name; see the module docstring.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if authorities is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        # The app's CA certificate is a trust anchor, even if it is not self-signed.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=_pem(authorities))
    if issued is not None:
        _load(context, issued)
    if verifier is not None:
        _verify_peers(context, verifier)
    return context


def _verify_peers(context: ssl.SSLContext, verifier: "Verifier") -> None:
    """Make the context's connections verify their peers with `verifier`."""

    class Socket(AttestedSocket):
        _verifier = verifier

    class Object(AttestedObject):
        _verifier = verifier

    context.sslsocket_class, context.sslobject_class = Socket, Object
    # Python 3.11.2 sets it with OpenSSL 3, and then a truncated stream ends in order (gh-95494).
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)


def _pem(certificates: str | bytes) -> str:
    """Return the certificates in PEM, without text around them."""
    if isinstance(certificates, bytes):
        try:
            certificates = certificates.decode("ascii")
        except UnicodeDecodeError as error:
            message = "PEM: not ASCII"
            raise FormatError(message, offset=error.start, reason="encoding") from error
    return "".join(map(certificate_pem, split_pem(certificates)))


def _load(context: ssl.SSLContext, issued: Issued) -> None:
    if not isinstance(issued, Issued):  # the text omits the value, which may be a key
        raise wrong_type("issued", "a ra_tls.Issued", issued)
    message = "issued: key or certificates are not PEM, or do not belong together"
    invalid = UsageError(message, reason="invalid_key")
    try:
        content = "".join((issued.key_pem, *issued.certificate_chain)).encode()
    except (TypeError, UnicodeError):
        raise invalid from None  # the cause may contain the key
    with _file_in_memory(content) as path:
        try:
            context.load_cert_chain(path, password="")
        except OSError as error:
            raise invalid from error


@contextlib.contextmanager
def _file_in_memory(content: bytes) -> Iterator[str]:
    """Yield the path of an anonymous file in memory, because ssl loads keys from files only.

    The key is not written to disk, and the file is removed in any case.
    """
    try:
        descriptor = os.memfd_create("attestkit-tls-key", os.MFD_CLOEXEC)
    except (AttributeError, OSError) as error:
        message = "TLS key: memfd_create, which loading it requires, is not available"
        raise UnsupportedError(message, reason="feature") from error
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(content)
        path = f"/proc/self/fd/{descriptor}"
        if not Path(path).exists():
            message = "TLS key: /proc/self/fd, which loading it requires, is not available"
            raise UnsupportedError(message, reason="feature")
        yield path
