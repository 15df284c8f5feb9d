"""httpx and httpx2 with their httpcores, which differ in the names of the modules alone."""

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NoReturn

from attestkit._argument_checks import import_package
from attestkit.client.wire.httpcore_streams import (
    AsyncProvingBackend,
    ConnectionRefusal,
    Module,
    ProvenOrigin,
    ProvingBackend,
)
from attestkit.client.wire.steps import ReconnectError
from attestkit.errors import AttestKitError, UsageError

if TYPE_CHECKING:
    import ssl

    from attestkit.client.wire.steps import ConnectionVerifier

LibraryName = Literal["httpx", "httpx2"]

_CORES: Final[Mapping[LibraryName, str]] = {"httpx": "httpcore", "httpx2": "httpcore2"}
_OF_CONNECTIONS: Final = frozenset(
    {"cert", "http1", "http2", "mounts", "proxies", "proxy", "transport", "trust_env", "verify"}
)


class HttpLibrary(NamedTuple):
    """The modules of httpx or httpx2, with the httpcore that it uses."""

    httpx: Module
    httpcore: Module
    mapped_errors: "ErrorMapping"
    """A context in which errors of httpcore are raised as those of httpx."""


class ErrorMapping:
    """Reusable context manager: raises httpcore's errors as httpx's, and unpacks ConnectionRefusal.

    A class, because each request enters it twice, and a generator would take four times as long.
    """

    __slots__ = ("_errors", "_httpx")

    def __init__(self, httpx: Module, errors: Mapping[type[Exception], type[Exception]]) -> None:
        self._httpx, self._errors = httpx, errors

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, ConnectionRefusal):
            self._raise_carried(error)
        elif error is not None:
            for one in type(error).__mro__:
                if one in self._errors:
                    raise self._errors[one](str(error)) from error

    def _raise_carried(self, refusal: ConnectionRefusal) -> NoReturn:
        error = refusal.error
        if isinstance(error, AttestKitError | ReconnectError) or not isinstance(error, OSError):
            raise error from error.__cause__
        timed_out = isinstance(error, TimeoutError)
        kind = self._httpx.ConnectTimeout if timed_out else self._httpx.ConnectError
        raise kind(str(error)) from error


@cache
def load_library(name: LibraryName) -> HttpLibrary:
    """Import httpx or httpx2, and its httpcore; the result is cached.

    Raises:
        UsageError: If it is not installed (reason `missing_dependency`).
    """
    message = f"{name}: not installed; pip install {name}"
    httpx, httpcore = [import_package(one, message) for one in (name, _CORES[name])]
    errors = {  # of the same names in both
        kind: getattr(httpx, name)
        for name, kind in vars(httpcore).items()
        if isinstance(kind, type) and issubclass(kind, Exception) and hasattr(httpx, name)
    }
    return HttpLibrary(httpx, httpcore, ErrorMapping(httpx, errors))


def choose_library(name: LibraryName | None) -> LibraryName:
    """Return `name`; for None `httpx2` if it is installed, else `httpx`.

    Raises:
        UsageError: If `name` is neither, or it is None and neither is installed.
    """
    if name is not None:
        if name not in _CORES:
            message = f"http: must be httpx or httpx2, not {str(name)[:50]!r}"
            raise UsageError(message, reason="unknown_name")
        return name
    for known in ("httpx2", "httpx"):
        if find_spec(known) is not None:
            return known
    message = "httpx: not installed; pip install 'attestkit[client]'"
    raise UsageError(message, reason="missing_dependency")


def client_options(url: str, transport: object, options: dict[str, Any]) -> dict[str, Any]:
    """Return `options` for an httpx Client, with `transport` and the default base URL `url`.

    Raises:
        UsageError: If an option would bypass the transport's connections, such as `proxy`.
    """
    if refused := sorted(_OF_CONNECTIONS & options.keys()):
        message = f"{refused[0]}: must be left out; pass proxy= or server_ca= to connect()"
        raise UsageError(message, reason="conflict")
    return {"base_url": url, **options, "transport": transport, "trust_env": False}


class PoolOptions:
    """Makes the connection pools of a transport.

    Args:
        library: httpx or httpx2.
        server_verifier: Verifier of the server.
        context: SSLContext of connections to the server.
        proxy: URL of a proxy (http, https, socks5 or socks5h), or Proxy of the library; None:
            direct connections.
        limits: Limits of the library; None: 100 connections, of which 20 may be idle.

    Raises:
        UsageError: If the URL of the proxy is not valid, or SOCKS needs a package that is missing.
    """

    def __init__(
        self,
        library: HttpLibrary,
        server_verifier: "ConnectionVerifier",
        context: "ssl.SSLContext",
        proxy: Any,
        limits: Any,
    ) -> None:
        httpx = library.httpx
        self.library = library
        if proxy is not None and not isinstance(proxy, httpx.Proxy):
            try:
                proxy = httpx.Proxy(url=proxy)
            except (ValueError, TypeError, httpx.InvalidURL):
                message = "proxy: must be a URL of http, https, socks5 or socks5h"
                # The text of that error may have a part of the password.
                raise UsageError(message, reason="wrong_value") from None
        if proxy is not None and proxy.url.scheme.startswith("socks") and not find_spec("socksio"):
            message = "proxy: SOCKS needs socksio, which is not installed; pip install socksio"
            raise UsageError(message, reason="missing_dependency")
        self._proxy = proxy
        self._limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)
        if limits is not None:
            self._limits = limits
        self._origin = ProvenOrigin(
            server_verifier, context, library.httpcore, proxied=self.proxied
        )

    @property
    def proxied(self) -> bool:
        """Whether connections go through a proxy."""
        return self._proxy is not None

    def make(self, *, asynchronous: bool) -> Any:
        """Return a new pool of httpcore: for asyncio if `asynchronous`, else for blocking I/O."""
        prefix = "Async" if asynchronous else ""
        kind = AsyncProvingBackend if asynchronous else ProvingBackend
        httpcore, proxy = self.library.httpcore, self._proxy
        options: dict[str, Any] = {
            "ssl_context": self._origin.context,
            "max_connections": self._limits.max_connections,
            "max_keepalive_connections": self._limits.max_keepalive_connections,
            "keepalive_expiry": self._limits.keepalive_expiry,
            "http1": True,
            "http2": False,
            "network_backend": kind(self._origin, httpcore),
        }
        if proxy is None:
            return getattr(httpcore, f"{prefix}ConnectionPool")(**options)
        url = proxy.url
        options["proxy_url"] = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        options["proxy_auth"] = proxy.raw_auth
        if url.scheme.startswith("socks"):
            return getattr(httpcore, f"{prefix}SOCKSProxy")(**options)
        options["proxy_headers"] = proxy.headers.raw
        options["proxy_ssl_context"] = proxy.ssl_context
        return getattr(httpcore, f"{prefix}HTTPProxy")(**options)
