"""An adapter of requests that verifies a server's attestation before it sends a request."""

import ssl
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.util import parse_url

from attestkit._argument_checks import wrong_type
from attestkit._system.bounded_http import host_header
from attestkit.client.sealing.protocol import SealingKeyError
from attestkit.client.wire import requests_body
from attestkit.client.wire.attested_tls import ProvenSocket
from attestkit.client.wire.exchange import MAX_CONNECTIONS, Exchange, ProvenRequests
from attestkit.client.wire.pools import PoolLease, PoolSet
from attestkit.client.wire.steps import ConnectionVerifier, ReconnectError
from attestkit.errors import AttestKitError, UsageError

if TYPE_CHECKING:
    from attestkit.client.sealing.protocol import Headers, Sealing

_DEPTH: Final = 8  # of errors inside of errors


class AttestedAdapter(ProvenRequests, BaseAdapter):
    """Sends requests to one attested server; others are refused before a connection is opened.

    Neither `verify` of a session or request, nor REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE change what
    is verified. `requests_session` returns a session with this adapter only; in another session,
    redirects to other servers are sent by that session's other adapters.

    Args:
        server_verifier: Verifier of the server.
        context: Context of `pinned_context` for the same server_verifier.
        proxy: URL of a proxy; None: that of the session. Its tunnels end at the attested server.
        connections: Maximum number of idle connections that are kept.
        options: Options of `ProvenRequests`.

    Raises:
        UsageError: If the context is not of `pinned_context`.
    """

    def __init__(
        self,
        server_verifier: ConnectionVerifier,
        context: ssl.SSLContext,
        *,
        proxy: str | None = None,
        connections: int = 10,
        **options: Any,
    ) -> None:
        super().__init__(server_verifier, **options)
        _require_proving_context(context)
        self._proxies = None if proxy is None else {"https": proxy}
        self._pools = PoolSet(
            server_verifier, lambda: _PeriodAdapter(server_verifier, context, connections)
        )

    def __getstate__(self) -> dict[str, Any]:
        """Raise TypeError, because proofs are valid in one process only."""
        message = f"{type(self).__name__} cannot be pickled"
        raise TypeError(message)

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a request over a connection on which the server was verified; return the response.

        Args:
            request: The request, whose URL must be at the endpoint's server.
            stream: Whether the body is left to be read by the caller.
            timeout: Limit in seconds, or pair of limits to connect and to read; None: no limit.
            verify: Not used: the SSLContext verifies the server.
            cert: Must be None: client certificates are refused.
            proxies: Proxies by scheme; not used if the adapter has a proxy of its own.

        Raises:
            UsageError: If the URL is not `https://`, or `cert` is given.
            ServiceError: If the URL is not at the endpoint's server, or the request cannot be
                encrypted.
            PeerRefusedError: If the server's evidence is not accepted.
        """
        del verify  # of the context
        self._check(request, cert)
        options: dict[str, Any] = {"stream": stream, "timeout": timeout}
        options["proxies"] = dict(proxies or {}) if self._proxies is None else self._proxies
        if self._sealing is not None:
            request = requests_body.with_whole_body(request)
        sealing = None if self._sealing is None else self._sealing()
        try:
            return self._send(request, sealing, options)
        except SealingKeyError:
            if self._renew_sealing is None:
                raise
            if (renewed := self._renew_sealing(sealing)) is None:
                raise
        return self._send(request, renewed, options)

    def _send(
        self,
        request: requests.PreparedRequest,
        sealing: "Sealing | None",
        options: dict[str, Any],
    ) -> requests.Response:
        outgoing, exchange = self._outgoing(request, sealing)
        for _ in range(MAX_CONNECTIONS):
            lease, idle = self._pools.acquire()
            try:
                for pool in idle:
                    pool.close()
                response = lease.pool.send(outgoing, **options)
            except BaseException as error:
                self._release(lease)
                inner = _inner_error(error)
                if isinstance(inner, ReconnectError):  # nothing of the request was sent
                    continue
                if inner is not None:
                    raise inner from inner.__cause__
                raise
            return self._response(request, response, exchange, lease)
        raise self._no_connection()

    def _check(self, request: requests.PreparedRequest, cert: object) -> None:
        url = parse_url(request.url or "")
        self._check_origin(url.scheme or "", (url.host or "").strip("[]"), url.port)
        if cert is not None:
            message = "cert: must be left out: client certificates are not supported here"
            raise UsageError(message, reason="not_applicable")

    def _outgoing(
        self, request: requests.PreparedRequest, sealing: "Sealing | None"
    ) -> tuple[requests.PreparedRequest, Exchange]:
        """Return the request as it is sent, encrypted if required, and what records its answer."""
        outgoing = request.copy()
        for name, value in self._headers:
            outgoing.headers.setdefault(name, value)
        headers: Headers = [(_text(name), _text(value)) for name, value in outgoing.headers.items()]
        if sealing is None:
            exchange = Exchange()
            if self._on_answer is not None:
                outgoing.headers = CaseInsensitiveDict(self._open_headers(headers))
        else:
            body, method = requests_body.read_body(request.body), request.method or "GET"
            sealed = self._seal(sealing, method, request.path_url, headers, body)
            exchange = Exchange(sealed)
            authority = host_header(
                self._server_verifier.host, self._server_verifier.port
            ).removesuffix(":443")
            outgoing.method = sealed.method
            outgoing.url = f"https://{authority}{sealed.target}"
            outgoing.headers = CaseInsensitiveDict(sealed.headers)
            outgoing.body = sealed.body
        outgoing.body = requests_body.record_body(outgoing.body, exchange.record)
        return outgoing, exchange

    def _response(
        self,
        request: requests.PreparedRequest,
        response: requests.Response,
        exchange: Exchange,
        lease: PoolLease["_PeriodAdapter"],
    ) -> requests.Response:
        try:
            response.raw = requests_body.RecordedResponse(
                response.raw,
                exchange,
                lambda: self.note(exchange),
                lambda: self._release(lease),
            )
        except BaseException:
            response.raw.close()
            self._release(lease)
            raise
        if exchange.read_at_once:
            _read(response)
        response.headers = CaseInsensitiveDict(response.raw.headers)
        response.encoding = requests.utils.get_encoding_from_headers(response.headers)
        response.request = request
        response.connection = self  # type: ignore[assignment] # digest authentication uses `send`
        return response

    def _release(self, lease: PoolLease["_PeriodAdapter"]) -> None:
        for pool in self._pools.release(lease):
            pool.close()

    def close(self) -> None:
        """Close all idle connections."""
        for pool in self._pools.drain():
            pool.close()


def requests_session(
    server_verifier: ConnectionVerifier, context: ssl.SSLContext, **options: Any
) -> requests.Session:
    """Return a session for one server, which ignores the environment and refuses other servers.

    Args:
        server_verifier: Verifier of the server.
        context: Context of `pinned_context` for the same server_verifier.
        options: Further arguments of `AttestedAdapter`.
    """
    session = requests.Session()
    session.trust_env = False
    session.close()  # the adapters that are replaced
    session.adapters.clear()
    adapter = AttestedAdapter(server_verifier, context, **options)
    for prefix in ("https://", "http://"):  # the adapter itself refuses other servers
        session.mount(prefix, adapter)
    return session


class _PeriodAdapter(HTTPAdapter):
    """The connections to one server that were opened under one proof; see `pools`."""

    def __init__(
        self, server_verifier: ConnectionVerifier, context: ssl.SSLContext, connections: int
    ) -> None:
        self._server_verifier, self._context = server_verifier, context

        class Connection(_ProvenConnection):
            _server_verifier = server_verifier

        members = {"ConnectionCls": Connection}
        self._classes = {"https": type("Pool", (HTTPSConnectionPool,), members)}
        super().__init__(pool_connections=1, pool_maxsize=connections)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make the pools of direct connections."""
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = self._classes

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        """Make the pools of connections through a proxy, and return their manager.

        Args:
            proxy: URL of the proxy.
            options: Arguments of the manager of urllib3.
        """
        manager = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = self._classes
        return manager

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[Any, Any]:
        """Return host and TLS parameters of the attested server, whatever the arguments are.

        Returns:
            Two dictionaries of urllib3: scheme, host and port; SSLContext and how it verifies.
        """
        del request, verify, cert
        host = {
            "scheme": "https",
            "host": self._server_verifier.host,
            "port": self._server_verifier.port,
        }
        tls = {"ssl_context": self._context, "cert_reqs": self._context.verify_mode}
        if not self._context.check_hostname:
            tls["assert_hostname"] = False
        return host, tls

    def get_connection(self, url: str | bytes, proxies: Any = None) -> Any:
        """Raise UsageError, whatever the arguments are: the installed requests is too old.

        Only releases before 2.32.2 call this. They cannot set host and context of a connection.
        """
        del url, proxies
        message = "requests: too old; pip install 'requests>=2.32.2'"
        raise UsageError(message, reason="missing_dependency")

    def close(self) -> None:
        """Close all idle connections at once; urllib3 does it once no answer refers to them."""
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118 - not iterable by itself
                if (pool := manager.pools.get(key)) is not None:
                    pool.close()
        super().close()

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Do nothing with these arguments: the SSLContext of the connection verifies the server."""


class _ProvenConnection(HTTPSConnection):
    """A connection of urllib3 whose SSLContext verifies the server's attestation."""

    _server_verifier: ConnectionVerifier  # of the subclass

    def connect(self) -> None:
        """Connect, to the server or through a proxy."""
        self._server_verifier.check_open()
        super().connect()
        self.is_verified = True  # by the proof; else urllib3 warns without WebPKI


def _require_proving_context(context: object) -> None:
    if not (
        isinstance(context, ssl.SSLContext) and issubclass(context.sslsocket_class, ProvenSocket)
    ):
        raise wrong_type("context", "a context of pinned_context", context)


def _inner_error(error: object) -> Exception | None:
    """Return the AttestKitError or ReconnectError inside an error of urllib3; None without one.

    Searched are `args` and `reason` of errors, not `__context__`, which may be an error that the
    caller has handled before.
    """
    found: Iterable[object] = [error]
    for _ in range(_DEPTH):
        for one in found:
            if isinstance(one, AttestKitError | ReconnectError):
                return one
        found = [part for one in found for part in _parts(one)]
    return None


def _parts(error: object) -> Iterator[object]:
    if isinstance(error, Exception):
        yield from error.args
        yield getattr(error, "reason", None)


def _read(response: requests.Response) -> None:
    try:
        response.content  # noqa: B018 - reads it
    except BaseException:
        response.close()
        raise


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
