"""The clients that an endpoint gives out, of each HTTP library: `EndpointClients`.

`openai` retries errors of connections that are not its own, and replaces them by one without their
text. A refusal is therefore raised as a PeerRefusedError that is an `openai.OpenAIError`, too.
"""

import ssl
from abc import ABC, abstractmethod
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

from attestkit._argument_checks import import_package
from attestkit.client.proofs.appraisal import SEALED_KINDS, TLS_KINDS, Appraiser
from attestkit.client.proofs.proof import Proof
from attestkit.client.proofs.prover import Prover
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

    from attestkit.client.sealing.protocol import Sealing
    from attestkit.client.wire.http_libraries import LibraryName


class EndpointClients(ABC):
    """Methods of `Endpoint` for HTTP libraries, each of which is imported on first use."""

    url: str
    _appraiser: Appraiser
    _dialing: Dialing
    _prover: Prover
    _answers: SignedAnswers | None  # None if the service need not sign

    @abstractmethod
    def prove(self) -> Proof:
        """Prove the server afresh."""

    @abstractmethod
    def _fetch(self, question: Question) -> bytes:
        """Ask a question on a connection of its own."""

    def client(self, *, http: "LibraryName | None" = None, **options: object) -> "httpx.Client":
        """Return a client of httpx2 if it is installed, else of httpx; they have the same methods.

        Its base URL is that of the endpoint. It follows no redirects to other servers, and takes no
        settings from the environment.

        Args:
            http: `httpx` or `httpx2`, to name one.
            options: Options of `Client`, such as `headers` or `timeout`, but not those that choose
                connections: `transport`, `mounts`, `proxy`, `verify`, `cert`, `http2`, `trust_env`.

        Raises:
            UsageError: If an option is not possible, or no library is installed.
        """
        made: httpx.Client = self._make("Client", self.transport, http, options)
        return made

    def async_client(
        self, *, http: "LibraryName | None" = None, **options: object
    ) -> "httpx.AsyncClient":
        """Return an AsyncClient as `client` does, for asyncio."""
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
        """Return a transport for a `Client` of the caller's; see `client`.

        Do not pass `mounts` or `proxy` to the client, which replace it.
        """
        classes = http_transports(choose_library(http))
        made: httpx.BaseTransport = classes.blocking(**self._transport_options(limits))  # type: ignore[assignment] # also of the library's class
        return made

    def async_transport(
        self, *, http: "LibraryName | None" = None, limits: object = None
    ) -> "httpx.AsyncBaseTransport":
        """Return a transport for an `AsyncClient` of the caller's; see `transport`."""
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
        """Return an adapter for a session of the caller's, to mount at `https://`.

        It refuses requests to other servers. Also mount it, or nothing, at `http://`.

        Raises:
            UsageError: If requests is not installed.
        """
        made: BaseAdapter = _load_requests().AttestedAdapter(
            **self._options(self._pinned_context())
        )
        return made

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """A context for aiohttp, websockets and sockets; a new one each time.

        It is for the host of the endpoint; a connection for another name is refused. The port is
        not known here, so do not let a client follow redirects to other ports of the host.

        Connections of event loops are accepted if their key is proven. Another key is refused with
        the reason `other_key`: then `await endpoint.aprove()`, and connect again.

        Raises:
            UsageError: If requests have to be sealed, which a context cannot do.
        """
        if self._appraiser.encrypt:
            message = "ssl_context: cannot seal requests (encrypt=True); use client()"
            raise UsageError(message, reason="conflict")
        return self._pinned_context()

    def openai(self, **options: object) -> "OpenAI":
        """Return an `openai.OpenAI` for this endpoint.

        A refusal is raised as an error that is a PeerRefusedError and an `openai.OpenAIError`.

        Args:
            options: Options of the class, such as `api_key`.

        Raises:
            UsageError: If openai is not installed, or an option is not possible.
        """
        made: OpenAI = self._open_openai(options, asynchronous=False)
        return made

    def async_openai(self, **options: object) -> "AsyncOpenAI":
        """Return an `openai.AsyncOpenAI` as `openai` does."""
        made: AsyncOpenAI = self._open_openai(options, asynchronous=True)
        return made

    def _pinned_context(self) -> ssl.SSLContext:
        webpki = self._appraiser.service.where != "handshake"
        return pinned_context(self._prover, self._dialing.server_ca, webpki=webpki)

    def _open_openai(self, options: dict[str, Any], *, asynchronous: bool) -> Any:  # noqa: ANN401 - of a package that need not be there
        """Return a client of openai, which follows redirects within the server."""
        openai = _load_openai()
        if given := [name for name in _OWN if name in options]:
            message = f"{given[0]}: is that of the endpoint; leave it out"
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
        """Return the arguments that the transports and adapters of all HTTP libraries take."""
        return {
            "prover": self._prover,
            "context": context,
            "sealing": self._changes_requests(),
            "renew_sealing": self._renew_sealing,
            "on_answer": None if self._answers is None else self._answers.note,
            "headers": list(getattr(self._appraiser.service, "request_headers", ())),
            "proxy": self._dialing.proxy,
            **more,
        }

    def _transport_options(self, limits: object = None) -> dict[str, Any]:
        context = self._dialing.context(self._appraiser.service)
        return self._options(context, limits=limits)

    def _changes_requests(self) -> "Callable[[], Sealing] | None":
        """Return a function that returns the Sealing of a request; None: requests are unchanged."""
        if self._appraiser.encrypt:
            return self._sealing
        return self._amending if hasattr(self._appraiser.service, "amending") else None

    def _amending(self) -> "Sealing":
        """Return the service's Sealing that adds to requests and checks headers of answers."""
        service: Any = self._appraiser.service
        proof = self._prover.newest
        claims = None if proof is None else proof.claims
        amending: Sealing = service.amending(claims, self._prover.forget)
        return amending

    def _sealing(self) -> "Sealing":
        """Return the Sealing to the newest proven key; prove the server first if necessary."""
        proof = self._prover.newest or self.prove()
        for binding in proof.bindings:
            if binding.kind in SEALED_KINDS:
                self._renew(binding)
                make: Any = getattr(self._appraiser.service, "sealing", None)
                allowed = self._appraiser.allow_open
                options = {"allow_open": allowed} if allowed else {}
                sealing: Sealing = make(proof.claims, binding, self._appraiser.model, **options)
                return sealing
        raise ServiceError("endpoint: its proof has no key for sealed requests", reason="sealing")

    def _renew_sealing(self) -> bool:
        """Prove the server again, after it answered that it lacks the key of a sealed request.

        Return whether the request may be sent once more: only if the TLS key is proven, too. Else
        that answer may be forged, after the application has received the request.
        """
        proofs = [self._prover.newest]
        self._prover.forget()
        proofs.append(self.prove())
        return all(
            proof is not None and any(one.kind in TLS_KINDS for one in proof.bindings)
            for proof in proofs
        )

    def _renew(self, binding: Binding) -> None:
        """Fetch nonces or similar, if the service needs new ones for the next sealed request."""
        service: Any = self._appraiser.service
        if (renewal := getattr(service, "renewal", None)) is None:
            return
        if (question := renewal(binding, self._appraiser.model)) is not None:
            service.renew(self._fetch(question))


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
    """Return transports of the library that openai uses, whose refusals openai passes on."""
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
