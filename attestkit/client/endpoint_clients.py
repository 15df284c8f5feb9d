"""Methods of `Endpoint` that return clients of HTTP libraries: `EndpointClients`.

`openai` retries errors of connections that are not its own, and replaces them by one without their
text. If a server is refused, the error is therefore both a PeerRefusedError and an
`openai.OpenAIError`.
"""

import ssl
from abc import ABC, abstractmethod
from functools import cache, partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from attestkit._argument_checks import import_package
from attestkit.client.proofs.appraisal import SEALED_KINDS, TLS_KINDS, Appraiser
from attestkit.client.proofs.proof import Proof
from attestkit.client.proofs.server_verifier import ServerVerifier
from attestkit.client.proofs.signed_answers import SignedAnswers
from attestkit.client.service_choice import Dialing
from attestkit.client.services.service import Binding, Question
from attestkit.client.wire.attested_tls import pinned_context
from attestkit.client.wire.http_libraries import choose_library, client_options, load_library
from attestkit.client.wire.httpx_transport import TransportClasses, http_transports
from attestkit.errors import AttestKitError, ServiceError, UsageError
from attestkit.ra_tls.connection import PeerRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx
    import requests
    from openai import AsyncOpenAI, OpenAI
    from requests.adapters import BaseAdapter

    from attestkit.client.sealing.protocol import Headers, SealedRequest, Sealing
    from attestkit.client.wire.http_libraries import LibraryName


class ProvenSealing(NamedTuple):
    """A Sealing of a service, and the proof with the key to which it encrypts."""

    sealing: "Sealing"
    proof: Proof

    def seal(self, method: str, target: str, headers: "Headers", body: bytes) -> "SealedRequest":
        """Encrypt a request as `Sealing.seal` does; return it as it is sent.

        Args:
            method: Method of the request, such as "POST".
            target: Its path and query.
            headers: Its headers, names and values.
            body: Its whole body; empty if it has none.
        """
        return self.sealing.seal(method, target, headers, body)


class EndpointClients(ABC):
    """Base of `Endpoint`: methods that return clients of HTTP libraries, imported on first use."""

    url: str
    _appraiser: Appraiser
    _dialing: Dialing
    _server_verifier: ServerVerifier
    _answers: SignedAnswers | None  # None if the service need not sign

    @abstractmethod
    def _prove(self, *, afresh: bool) -> Proof:
        """Verify the server's attestation on a new connection, and return the proof.

        Args:
            afresh: Whether to do so even if a proof is valid now, or is just being made.
        """

    @abstractmethod
    def _fetch(self, question: Question) -> bytes:
        """Send a GET request for evidence on a new connection; return the body of the answer."""

    def client(self, *, http: "LibraryName | None" = None, **options: object) -> "httpx.Client":
        """Return a client of httpx2 if it is installed, else of httpx; they have the same methods.

        Its base URL is that of the endpoint, and it takes no settings from the environment. A
        request raises PeerRefusedError if the server is refused, and ServiceError if its URL or a
        redirect names another server.

        Args:
            http: `httpx` or `httpx2`; None: httpx2 if it is installed, else httpx.
            options: Options of `Client`, such as `headers` or `timeout`, but not those that choose
                connections: `transport`, `mounts`, `proxy`, `proxies`, `verify`, `cert`, `http1`,
                `http2`, `trust_env`.

        Raises:
            UsageError: If an option is one of those, or the library is unknown or not installed.
        """
        made: httpx.Client = self._make("Client", self.transport, http, options)
        return made

    def async_client(
        self, *, http: "LibraryName | None" = None, **options: object
    ) -> "httpx.AsyncClient":
        """Return an AsyncClient of httpx2 or httpx, for asyncio.

        Arguments and errors are those of `client`: the library, and options of the client.
        """
        made: httpx.AsyncClient = self._make("AsyncClient", self.async_transport, http, options)
        return made

    def _make(
        self,
        kind: str,
        transport: "Callable[..., object]",
        http: "LibraryName | None",
        options: dict[str, Any],
    ) -> Any:  # noqa: ANN401 - of either library
        name = choose_library(http)
        made = transport(http=name, limits=options.pop("limits", None))
        return getattr(load_library(name).httpx, kind)(**client_options(self.url, made, options))

    def transport(
        self, *, http: "LibraryName | None" = None, limits: object = None
    ) -> "httpx.BaseTransport":
        """Return a transport for an httpx (or httpx2) `Client` that the caller creates.

        Do not pass `mounts` or `proxy` to the client, which replace the transport.

        Args:
            http: `httpx` or `httpx2`; None: httpx2 if it is installed, else httpx.
            limits: `Limits` of the library; None: 100 connections, of which 20 may be idle.

        Raises:
            UsageError: If the library is unknown or not installed.
        """
        classes = http_transports(choose_library(http))
        made: httpx.BaseTransport = classes.blocking(**self._transport_options(limits))  # type: ignore[assignment] # also of the library's class
        return made

    def async_transport(
        self, *, http: "LibraryName | None" = None, limits: object = None
    ) -> "httpx.AsyncBaseTransport":
        """Return a transport for an httpx (or httpx2) `AsyncClient` that the caller creates.

        Arguments are those of `transport`: the library, and limits of connections.
        """
        classes = http_transports(choose_library(http))
        made: httpx.AsyncBaseTransport = classes.asynchronous(**self._transport_options(limits))  # type: ignore[assignment] # as above
        return made

    def requests_session(self) -> "requests.Session":
        """Return a session of requests for this server alone, without settings of the environment.

        `verify` of session and requests has no effect, and `cert` is refused.

        Raises:
            UsageError: If requests is not installed.
        """
        made: requests.Session = _load_requests().requests_session(
            **self._options(self._pinned_context())
        )
        return made

    def adapter(self) -> "BaseAdapter":
        """Return an adapter for a requests `Session` that the caller creates.

        It refuses requests to other servers, and those without TLS. Mount it at `https://` and at
        `http://`: otherwise the session sends redirects to `http://` by its own adapter there.

        Raises:
            UsageError: If requests is not installed.
        """
        made: BaseAdapter = _load_requests().AttestedAdapter(
            **self._options(self._pinned_context())
        )
        return made

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """A client's SSLContext for aiohttp, websockets and sockets; a new one each time.

        It is for the host of the endpoint; a connection for any other name is refused. The port is
        not known here, so do not let a client follow redirects to other ports of the host.

        A blocking socket verifies the server in its handshake. A connection of an event loop cannot
        do so: it is accepted only if evidence that was verified before names its TLS key, else
        refused (PeerRefusedError with reason `other_key`). Then `await endpoint.aprove()`, and
        connect again.

        Raises:
            UsageError: If the endpoint has `encrypt=True`: a context cannot encrypt requests.
        """
        if self._appraiser.encrypt:
            message = "ssl_context: cannot encrypt requests (encrypt=True); use client()"
            raise UsageError(message, reason="conflict")
        return self._pinned_context()

    def openai(self, **options: object) -> "OpenAI":
        """Return an `openai.OpenAI` for this endpoint.

        If the server is refused, its methods raise an error that is both a PeerRefusedError and an
        `openai.OpenAIError`.

        Args:
            options: Options of the class, such as `api_key`.

        Raises:
            UsageError: If openai is not installed, or `base_url` or `http_client` is given.
        """
        made: OpenAI = self._open_openai(options, asynchronous=False)
        return made

    def async_openai(self, **options: object) -> "AsyncOpenAI":
        """Return an `openai.AsyncOpenAI` as `openai` does.

        Args:
            options: Options of the class, such as `api_key`.
        """
        made: AsyncOpenAI = self._open_openai(options, asynchronous=True)
        return made

    def _pinned_context(self) -> ssl.SSLContext:
        webpki = self._appraiser.service.where != "handshake"
        return pinned_context(self._server_verifier, self._dialing.server_ca, webpki=webpki)

    def _open_openai(self, options: dict[str, Any], *, asynchronous: bool) -> Any:  # noqa: ANN401 - of a package that need not be there
        """Return an `OpenAI` or `AsyncOpenAI`; it follows redirects to the same server only.

        Args:
            options: Keyword arguments of that class, such as `api_key`.
            asynchronous: Whether to return an `AsyncOpenAI`.

        Raises:
            UsageError: If openai is not installed, or `options` have `base_url` or `http_client`.
        """
        openai = _load_openai()
        if given := [name for name in _OWN if name in options]:
            message = f"{given[0]}: must be left out, because the endpoint sets it"
            raise UsageError(message, reason="conflict")
        classes = _openai_classes()
        kind = classes.asynchronous if asynchronous else classes.blocking
        prefix = "Async" if asynchronous else ""
        client = getattr(openai, f"Default{prefix}HttpxClient")(
            base_url=self.url, trust_env=False, transport=kind(**self._transport_options())
        )
        made = getattr(openai, f"{prefix}OpenAI")
        return made(base_url=self.url, http_client=client, **options)

    def _options(self, context: ssl.SSLContext, **more: object) -> dict[str, Any]:
        """Return the arguments common to the transports of all HTTP libraries, and `more`.

        Args:
            context: SSLContext of the transport's connections.
            more: Further arguments, by name.
        """
        return {
            "server_verifier": self._server_verifier,
            "context": context,
            "sealing": self._changes_requests(),
            "renew_sealing": self._renew_sealing if self._appraiser.encrypt else None,
            "on_answer": None if self._answers is None else self._answers.note,
            "headers": list(getattr(self._appraiser.service, "request_headers", ())),
            "proxy": self._dialing.proxy,
            **more,
        }

    def _transport_options(self, limits: object = None) -> dict[str, Any]:
        context = self._dialing.context(self._appraiser.service)
        return self._options(context, limits=limits)

    def _changes_requests(self) -> "Callable[[], Sealing] | None":
        """Return a function that makes the Sealing of a request, which encrypts or amends it.

        None: requests are sent unchanged.
        """
        if self._appraiser.encrypt:
            return self._sealing
        return self._amending if hasattr(self._appraiser.service, "amending") else None

    def _amending(self) -> "Sealing":
        """Return the service's Sealing that adds members to requests, and encrypts nothing."""
        service: Any = self._appraiser.service
        proof = self._server_verifier.newest
        claims = None if proof is None else proof.claims
        amending: Sealing = service.amending(claims, self._forget_keys(proof))
        return amending

    def _forget_keys(self, proof: Proof | None) -> "Callable[[], object]":
        """Return a function that ends all proofs if the newest one names the same keys as `proof`.

        Those of TLS are not compared: a newer proof may be of a connection with another one. None:
        they end in any case.
        """
        if proof is None:
            return self._server_verifier.forget

        def has_same_keys(newest: Proof) -> bool:
            return newest.keys == proof.keys and _sealed_keys(newest) == _sealed_keys(proof)

        return partial(self._server_verifier.forget, has_same_keys)

    def _sealing(self) -> ProvenSealing:
        """Return the Sealing that encrypts a request to the key in the newest proof.

        If no proof is valid, the server is verified first: once for all requests that wait for it.
        """
        proof = self._server_verifier.newest or self._prove(afresh=False)
        for binding in proof.bindings:
            if binding.kind in SEALED_KINDS:
                self._renew(proof, binding)
                make: Any = getattr(self._appraiser.service, "sealing", None)
                allowed = self._appraiser.allow_open
                options: dict[str, Any] = {"allow_open": allowed} if allowed else {}
                if "changed" in signature(make).parameters:
                    options["changed"] = self._forget_keys(proof)
                sealing: Sealing = make(proof.claims, binding, self._appraiser.model, **options)
                return ProvenSealing(sealing, proof)
        raise ServiceError("endpoint: the evidence has no key to encrypt to", reason="sealing")

    def _renew_sealing(self, refused: ProvenSealing) -> ProvenSealing | None:
        """Verify the server again, after it answered that it lacks the key of an encrypted request.

        Return the Sealing to send the request once more; None if it may not be: it may only if the
        evidence, before and now, names a TLS key too. Otherwise an attacker in between may have
        forged that answer, after the application has received the request.

        Args:
            refused: What encrypted the request. If another request has led to a proof with another
                key since, that one is used.
        """
        lacking = _sealed_keys(refused.proof)
        self._server_verifier.forget(lambda newest: _sealed_keys(newest) == lacking)
        renewed = self._sealing()
        named = (
            any(one.kind in TLS_KINDS for one in proof.bindings)
            for proof in (refused.proof, renewed.proof)
        )
        return renewed if all(named) else None

    def _renew(self, proof: Proof, binding: Binding) -> None:
        """Fetch single-use nonces or similar, if the next encrypted request needs new ones.

        Args:
            proof: Proof of the server.
            binding: Key to which the request is encrypted.
        """
        service: Any = self._appraiser.service
        if (renewal := getattr(service, "renewal", None)) is None:
            return
        if (question := renewal(proof.claims, binding, self._appraiser.model)) is not None:
            service.renew(proof.claims, self._fetch(question))


def _sealed_keys(proof: Proof) -> list[bytes]:
    """Return the key in a proof to which requests are encrypted; nothing without one."""
    return [one.key for one in proof.bindings if one.kind in SEALED_KINDS]


_OWN: Final = ("base_url", "http_client")
# Late: of packages that need not be there.
_load_requests: Final = partial(
    import_package,
    "attestkit.client.wire.requests_adapter",
    "requests: not installed; pip install requests",
)
_load_openai: Final = partial(import_package, "openai", "openai: not installed; pip install openai")


@cache
def _openai_classes() -> TransportClasses:
    """Return transports of the library that openai uses, whose errors openai raises unchanged."""
    openai = _load_openai()
    parents = {base.__module__.partition(".")[0] for base in openai.DefaultHttpxClient.__mro__}
    name: LibraryName = "httpx2" if "httpx2" in parents else "httpx"  # since openai 3
    transports = http_transports(name)

    # For mypy the base classes are values: both packages are loaded late.
    class _OpenAIRefusedError(PeerRefusedError, openai.OpenAIError):  # type: ignore[misc,name-defined]
        """A server was refused, or a request is not for it; also an `openai.OpenAIError`."""

    def refused(error: AttestKitError) -> _OpenAIRefusedError:
        text = getattr(error, "verify_message", None) or str(error)
        return _OpenAIRefusedError(text, reason=error.reason)

    class OpenAITransport(transports.blocking):  # type: ignore[misc,name-defined]
        def handle_request(self, request: object) -> object:
            try:
                return super().handle_request(request)
            except AttestKitError as error:
                raise refused(error) from error

    class OpenAIAsyncTransport(transports.asynchronous):  # type: ignore[misc,name-defined]
        async def handle_async_request(self, request: object) -> object:
            try:
                return await super().handle_async_request(request)
            except AttestKitError as error:
                raise refused(error) from error

    return TransportClasses(OpenAITransport, OpenAIAsyncTransport)
