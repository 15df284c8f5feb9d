"""SSL contexts whose connections verify the peer's evidence before data is exchanged.

They work with blocking sockets, asyncio and uvloop, and libraries that use these. A client:

```python
context = ra_tls.client_context(verifier)
transport = ra_tls.HTTPTransport(context)  # or AsyncHTTPTransport, for httpx.AsyncClient
with httpx.Client(transport=transport) as client:
    response = client.get("https://10.0.0.7:8443/")
    result = ra_tls.peer(response.extensions["network_stream"])
```

The argument `issued` is the key and certificate of this side of the connection. It comes from a
dstack guest agent, which includes evidence only on request:

```python
def get_tls_key():
    now = int(time.time())
    dates = {"not_before": now - 300, "not_after": now + 3600}
    usages = {"usage_ra_tls": True, "usage_server_auth": True, "usage_client_auth": True}
    with httpx.Client(transport=httpx.HTTPTransport(uds="/var/run/dstack.sock")) as agent:
        request = {"subject": "my app", **dates, **usages}
        answer = agent.post("http://dstack/GetTlsKey", json=request).raise_for_status()
    return ra_tls.Issued.from_agent_response(answer.json(), renew=get_tls_key)


issued = get_tls_key()
peer_ca = issued.certificate_chain[-1]  # where both sides are of the same app
```

or from this library, with a TEE (`attestkit.open()`, which must stay open) and the keys of the app.
Such a certificate lives an hour, and the context renews it:

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

A context with a renewable certificate (`Issued.renew`) is used for the whole life of the program:
the first new connection after half of the certificate's life starts the renewal in a thread, and
waits for it at most a second. If it fails or takes longer, the old certificate stays in use.

The verification runs in the thread of the event loop and takes about a millisecond. A verifier that
fetches collateral blocks the loop meanwhile, once per kind of platform until its cache expires; if
that matters, pass collateral or a filled cache.

The peer's name is not verified: a TD's agent certifies any name that the app requests. Restrict the
accepted apps with the verifier's policy, by app ID and OS image (`AppraisalPolicy.from_evidence`):
any image can report the app ID of a different app. The default policy accepts every app on an
up-to-date platform, which both contexts refuse without `any_app=True`.
"""

import contextlib
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from attestkit._argument_checks import wrong_type
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.app_certificates import certificate_pem, read_certificate
from attestkit._system.clock import current_time
from attestkit._system.fork_safety import call_now_and_after_fork
from attestkit.errors import AttestKitError, FormatError, UsageError
from attestkit.ra_tls.certificate import MAX_LIFETIME, check_max_lifetime
from attestkit.ra_tls.connection import AttestedObject, AttestedSocket
from attestkit.ra_tls.issuance import Issued, load_issued

if TYPE_CHECKING:
    from attestkit.verifier import Verifier

RETRY: Final = 60.0
"""Seconds from a failed renewal to the next attempt, and the least from one renewal to the next."""
PATIENCE: Final = 1.0
"""Seconds that a new connection waits for a renewal, which goes on in its thread."""

_logger = logging.getLogger("attestkit.ra_tls")


class RenewingContext(ssl.SSLContext):
    """A context whose new connections present a fresh certificate.

    ssl offers no lock: a context must not be changed while a connection is created from it, which
    copies the certificate. Both happen under one lock here. A handshake uses the copy of its
    connection, and needs no lock.

    The first connection that is created after half of the certificate's life, or before its begin
    because the clock was set back, starts the renewal in a thread, and waits for it at most
    `PATIENCE` seconds. Other threads meanwhile use the old certificate while it is valid. If the
    renewal fails or takes longer, the old certificate stays in use, also after its end, when peers
    reject it with the reason `cert_expired`; failures are logged as warnings, and repeated every
    `RETRY` seconds. Existing connections are not affected.

    A certificate that lives longer than a day, as those of a dstack agent do by default, counts as
    one of a day from the moment at which it was loaded.
    """

    _issued: Issued | None = None  # the loaded certificate

    def renew_from(self, issued: Issued, now: Callable[[], float]) -> None:
        """Renew the loaded key and certificate with `issued.renew`, which must not be None.

        `now` returns the time in seconds since 1970.
        """
        self._now = now
        self._begin, self._due, self._end = _dates(issued, now())
        self._tried = float("-inf")  # when the last renewal ended
        self._issued = issued
        call_now_and_after_fork(self._forget_parent)

    def _forget_parent(self) -> None:
        """Create the lock, and drop a renewal that a parent process continues."""
        self._lock = threading.Lock()  # while the context is changed, or a connection is created
        self._thread: threading.Thread | None = None

    # SSLSocket and SSLObject create the TLS connection with these, also for a later `connect`.

    def _wrap_socket(self, *args: object, **named: object) -> object:
        with self._hold_certificate():
            return cast("Any", super())._wrap_socket(*args, **named)  # noqa: SLF001

    def _wrap_bio(self, *args: object, **named: object) -> object:
        with self._hold_certificate():
            return cast("Any", super())._wrap_bio(*args, **named)  # noqa: SLF001

    @contextlib.contextmanager
    def _hold_certificate(self) -> Iterator[None]:
        """Context manager: renew the certificate if it is due, and do not replace it inside."""
        if self._issued is None:
            yield
            return
        if self._is_due(self._now()):
            self._renew_now()
        with self._lock:
            yield

    def _is_due(self, now: float) -> bool:
        if self._tried <= now < self._tried + RETRY:  # false after the clock was set back
            return False
        return not self._begin <= now < self._due

    def _renew_now(self) -> None:
        with self._lock:
            thread, now = self._thread, self._now()
            running = thread is not None and thread.is_alive()
            if not self._is_due(now) or (running and self._begin <= now <= self._end):
                return
            if not running:
                thread = self._start()
        # `renew` may itself connect with this context.
        if thread is not None and thread is not threading.current_thread():
            thread.join(PATIENCE)

    def _start(self) -> threading.Thread | None:
        # A daemon: a device that hangs does not delay the end of the program.
        thread = threading.Thread(target=self._run, name="attestkit-ra-tls-renewal", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # too many threads, or the interpreter shuts down
            self._failed(error)
            return None
        self._thread = thread
        return thread

    def _run(self) -> None:
        try:
            assert self._issued is not None
            assert self._issued.renew is not None
            renewed = self._issued.renew()
            # Apart, because a failure would leave the context half changed.
            load_issued(ssl.SSLContext(self.protocol), renewed)
            dates = _dates(renewed, self._now())
            with self._lock:
                load_issued(self, renewed)
                self._begin, self._due, self._end = dates
                self._tried = self._now()
        except Exception as error:  # noqa: BLE001 - the old certificate stays in use
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._tried = self._now()
        left = int(self._end - self._now())
        known = isinstance(error, AttestKitError)
        text = str(error) if known else type(error).__name__  # which may contain a secret
        _logger.warning(
            "TLS certificate: not renewed, expires in %d seconds; next attempt in %d: %s",
            *(left, RETRY, text),
        )


def _dates(issued: Issued, now: float) -> tuple[float, float, float]:
    """Return begin, renewal and end of a certificate loaded at `now`: seconds since 1970.

    The begin is not later than `now`: if the issuer's clock is ahead, a renewal would not help.
    """
    certificate = read_certificate(issued.certificate_chain[0])
    begin, end = certificate.valid_from.timestamp(), certificate.valid_until.timestamp()
    longest = MAX_LIFETIME.total_seconds()
    if end - begin > longest:
        return now, (now + min(end, now + longest)) / 2, end
    return min(begin, now), (begin + end) / 2, end


_OPTIONS: Final = ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def server_context(
    verifier: "Verifier | None" = None,
    *,
    issued: Issued | None = None,
    peer_ca: str | bytes | None = None,
    max_lifetime: timedelta | None = MAX_LIFETIME,
    any_app: bool = False,
    now: Callable[[], float] = current_time,
) -> ssl.SSLContext:
    """Return a server's context: TLS 1.3, without session tickets.

    Args:
        verifier: Verifier of the clients' evidence, whose policy names the accepted app and its OS
            image as for `client_context`, because `peer_ca` may be the CA of many apps. None
            accepts all clients and requests no certificate.
        issued: The server's key and certificates, with evidence in the first certificate. The
            context replaces them by `Issued.renew`, if there is one, once half of the certificate's
            life is over. None: the caller loads key and certificates into the context.
        peer_ca: CA certificates of the accepted clients, the PEM text itself, such as that of the
            app (the last certificate of GetTlsKey). OpenSSL needs CA certificates in order to
            request a certificate from the client. It verifies the client's chain with the system
            clock, and the extended key usage, if present.
        max_lifetime: Longest accepted lifetime of a client's certificate; None accepts any. See
            `verify`.
        any_app: Whether a policy that does not name both app and OS image is intended: any app on
            an accepted platform, with a certificate of `peer_ca`, can then be a client.
        now: Returns the time in seconds since 1970, for renewals.

    Raises:
        UsageError: If only one of `verifier` and `peer_ca` is given, `verifier` is not a Verifier,
            its policy does not name app and image and `any_app` is not set (reason `any_app`),
            `issued` is not an `Issued`, its key does not belong to its certificate, or
            `max_lifetime` is not valid.
        FormatError: If `peer_ca` is not PEM, or a certificate in it is malformed.
        UnsupportedError: If memfd_create or /proc is not available.
    """
    if verifier is not None and peer_ca is None:
        message = "peer_ca: missing; pass the CA certificates of the clients in PEM"
        raise UsageError(message, reason="missing")
    if verifier is None and peer_ca is not None:
        message = "verifier: missing, and peer_ca alone does not show a TEE; pass a Verifier"
        raise UsageError(message, reason="missing")
    if verifier is not None:
        _check_verifier(verifier, "a client", any_app=any_app)
    check_max_lifetime(max_lifetime)
    context = _context(ssl.PROTOCOL_TLS_SERVER, issued, peer_ca, now)
    if verifier is not None:
        _verify_peers(context, verifier, max_lifetime)
    context.num_tickets = 0  # in TLS 1.3, OP_NO_TICKET only makes tickets stateful
    return context


def client_context(
    verifier: "Verifier",
    *,
    issued: Issued | None = None,
    server_ca: str | bytes | None = None,
    max_lifetime: timedelta | None = MAX_LIFETIME,
    any_app: bool = False,
    now: Callable[[], float] = current_time,
) -> ssl.SSLContext:
    """Return a client's context: TLS 1.3, with verification of the server's evidence.

    Args:
        verifier: Verifier of the servers' evidence, whose policy names the accepted app, by
            `app_id`, `compose_hash` or a reference value of RTMR3, MR_CONFIG_ID or HOST_DATA; and
            the OS image, by `os_image_hash` or the reference values of its registers, because any
            image can report any app.
        issued: The client's key and certificates, for servers that request them. The server
            receives the certificate, with the app's identity, before its evidence is verified.
            Renewed as for `server_context`.
        server_ca: CA certificates, the PEM text itself, such as that of the server's app; the
            server's certificate chain must lead to one of them. None does not verify the chain.
        max_lifetime: Longest accepted lifetime of the server's certificate; None accepts any. See
            `verify`.
        any_app: Whether a policy that does not name both app and OS image is intended: any app on
            an accepted platform can then be the server.
        now: Returns the time in seconds since 1970, for renewals.

    Raises:
        UsageError: If `verifier` is not a Verifier, its policy does not name app and image and
            `any_app` is not set (reason `any_app`), `issued` is not an `Issued`, its key does not
            belong to its certificate, or `max_lifetime` is not valid.
        FormatError: If `server_ca` is not PEM, or a certificate in it is malformed.
        UnsupportedError: If memfd_create or /proc is not available.
    """
    _check_verifier(verifier, "the server", any_app=any_app)
    check_max_lifetime(max_lifetime)
    context = _context(ssl.PROTOCOL_TLS_CLIENT, issued, server_ca, now)
    _verify_peers(context, verifier, max_lifetime)
    return context


def _check_verifier(verifier: "Verifier", peer: str, *, any_app: bool) -> None:
    """Raise UsageError unless a Verifier's policy names app and OS image, or `any_app` is set.

    `peer` is the role in the error's text: "a client" or "the server".
    """
    from attestkit.verifier.policy.app_pins import names_app  # lazy: the verifier has loaded it

    if not (hasattr(verifier, "verify") and hasattr(verifier, "policy")):
        raise wrong_type("verifier", "a Verifier", verifier)
    if not any_app and not names_app(verifier.policy):
        message = (
            "verifier: its policy does not name both app and OS image, so that any app could be "
            f"{peer}; use one of AppraisalPolicy.from_evidence, or pass any_app=True"
        )
        raise UsageError(message, reason="any_app")


def _context(
    protocol: int,
    issued: Issued | None,
    authorities: str | bytes | None,
    now: Callable[[], float],
) -> ssl.SSLContext:
    renewable = isinstance(issued, Issued) and issued.renew is not None
    # Not create_default_context, which writes keys to SSLKEYLOGFILE.
    context = (RenewingContext if renewable else ssl.SSLContext)(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= _OPTIONS
    # The agent issues certificates for any name; see the module docstring.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if authorities is not None:
        load_authorities(context, authorities)
    if issued is not None:
        load_issued(context, issued)
    if isinstance(context, RenewingContext):
        assert issued is not None
        context.renew_from(issued, now)
    return context


def load_authorities(context: ssl.SSLContext, authorities: str | bytes) -> None:
    """Make a context accept only peers whose chain leads to one of these certificates in PEM.

    Raises:
        FormatError: If `authorities` is not PEM, or a certificate in it is malformed.
        UsageError: If it is neither text nor bytes.
    """
    if not isinstance(authorities, (str, bytes)):
        raise wrong_type("CA certificates", "str or bytes", authorities)
    context.verify_mode = ssl.CERT_REQUIRED
    # The app's CA certificate is a trust anchor, even if it is not self-signed.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=_pem(authorities))
    except FormatError as error:
        message = f"CA certificates: {error.message}"
        raise FormatError(message, reason=error.reason, offset=error.offset) from error
    except ssl.SSLError as error:
        raise FormatError("CA certificates: one is malformed", reason="syntax") from error


def _verify_peers(
    context: ssl.SSLContext, verifier: "Verifier", max_lifetime: timedelta | None
) -> None:
    """Make the context's connections verify their peers with `verifier`.

    `max_lifetime` is the longest accepted lifetime of a peer's certificate; None accepts any.
    """

    class Socket(AttestedSocket):
        _verifier, _max_lifetime = verifier, max_lifetime

    class Object(AttestedObject):
        _verifier, _max_lifetime = verifier, max_lifetime

    context.sslsocket_class, context.sslobject_class = Socket, Object
    # Python 3.11.2 sets it with OpenSSL 3, and then a truncated stream ends in order (gh-95494).
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)


def _pem(certificates: str | bytes) -> str:
    """Return the certificates in PEM, without text around them."""
    if isinstance(certificates, bytes):
        try:
            certificates = certificates.decode("ascii")
        except UnicodeDecodeError as error:
            message = "PEM: must be ASCII"
            raise FormatError(message, offset=error.start, reason="encoding") from error
    return "".join(map(certificate_pem, split_pem(certificates)))
