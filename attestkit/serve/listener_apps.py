"""Applications of the listeners: their services, views, request checks and response headers."""

import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from attestkit.errors import NotFoundError, UnsupportedError, UsageError
from attestkit.serve.api_docs import views as docs
from attestkit.serve.api_docs.api_model import Api
from attestkit.serve.config.option_values import HTTP_PORT
from attestkit.serve.container_logs import view
from attestkit.serve.endpoints import LimitedSocket
from attestkit.serve.http.asgi import App, Scope, security_headers
from attestkit.serve.http.request_checks import has_loopback_host, refuse_other_sites
from attestkit.serve.http.views import Header, View, ViewRequest, ViewResponse
from attestkit.serve.metrics.agent import AgentMetrics
from attestkit.serve.pages.dashboard import ASSETS, Dashboard, get_asset
from attestkit.serve.rpc.dispatcher import RpcApp
from attestkit.serve.rpc.error_responses import MethodRefusedError
from attestkit.serve.rpc.service import Method, Service
from attestkit.serve.services import dstack_guest, guest_v1, tappd, worker_api
from attestkit.serve.services.context import Guest
from attestkit.serve.services.worker_api import SERVICE

if TYPE_CHECKING:
    from attestkit.serve.external_auth.access_control import ExternalAuth

# Views of the external listener: dashboard, static files and metrics.

_NOTHING: Final[Mapping[str, View]] = MappingProxyType({})
_FOREVER: Final = (b"cache-control", b"public, max-age=31536000, immutable")
_ASK_AGAIN: Final = (b"cache-control", b"no-cache")


def make_views(
    guest: Guest, others: Mapping[str, View] = _NOTHING, linked: Collection[str] = ()
) -> dict[str, View]:
    """Return the views by path: dashboard, static files, metrics, and `others` (by path).

    The dashboard links to these and to the paths in `linked`. `/metrics` requires `public_sysinfo`
    in the app's compose file.
    """
    found = {"/assets/": View(_show_asset, named=True), **others}
    if guest.app_compose.public_sysinfo:
        found["/metrics"] = View(AgentMetrics().show)
    methods = {f"{SERVICE.mount}{SERVICE.prefix}{name}" for name in SERVICE.methods}
    return {"/": View(Dashboard({*methods, *found, *linked}).show), **found}


async def _show_asset(_: Guest, request: ViewRequest) -> ViewResponse:
    """Return a static file; cacheable forever if the query is `v=` and the digest of the file."""
    if request.name not in ASSETS:
        raise NotFoundError(f"No such path: /assets/{request.name}", reason="path")
    content, digest = get_asset(request.name)
    cacheable = request.query == b"v=%s" % digest.encode("ascii")
    return ViewResponse(ASSETS[request.name], content, [_FOREVER if cacheable else _ASK_AGAIN])


_AT_ROOT = dstack_guest.SERVICE._replace(aliases=())  # tappd.sock has no /v0

# Tappd clients inherit the DstackGuest methods and call them under their own prefix or at the root
# of tappd.sock; both give the same keys.
_OLD_CLIENTS = tappd.SERVICE._replace(
    methods={**dstack_guest.SERVICE.methods, **tappd.SERVICE.methods}
)

# Methods of the development listener that neither return nor use a key of the app, and change
# nothing. All others are POST with JSON there: see `Method.json_only`.
_KEYLESS = frozenset(
    {"Attest", "AttestGpu", "GetQuote", "Info", "RawQuote", "TdxQuote", "Verify", "Version"}
)
DEV_SERVICES: Final[Sequence[Service]] = [
    service._replace(
        methods={
            name: method._replace(json_only=name not in _KEYLESS)
            for name, method in service.methods.items()
        }
    )
    for service in (dstack_guest.SERVICE, guest_v1.SERVICE, _OLD_CLIENTS)
]
"""Services of the development listener."""

EXTERNAL_SERVICES: Final[Sequence[Service]] = (worker_api.SERVICE, worker_api.SERVICE_V1)
"""Services of the external listener."""

_HOST = rb"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?"
_OUR_HOST = re.compile(_HOST, re.IGNORECASE)
_OUR_PAGES = re.compile(rb"http://" + _HOST + rb"(/|\Z)", re.IGNORECASE)


# Title of each listener in the API documents, and the arguments of curl that reach it.
_CURL_TARGETS = {
    "dstack": ("dstack.sock", "--unix-socket /var/run/dstack.sock http://dstack"),
    "tappd": ("tappd.sock", "--unix-socket /var/run/tappd.sock http://tappd"),
    "http": ("the external listener", f"http://localhost:{HTTP_PORT}"),
    "dev_http": ("the development listener", "http://localhost:8091"),
}


DSTACK_SERVICES: Final[Sequence[Service]] = (dstack_guest.SERVICE, guest_v1.SERVICE)
"""Services of dstack.sock."""


def dstack_app(guest: Guest) -> RpcApp:
    """Return the application of dstack.sock: guest API v1 at `/v1/`, v0 at `/` and `/v0/`."""
    return _app("dstack", guest, DSTACK_SERVICES)


def check_methods(limited: LimitedSocket) -> None:
    """Check the names of the methods of a limited socket.

    Raises:
        UsageError: If no method is given, or one is not a method of dstack.sock.
    """
    names = {name for one in DSTACK_SERVICES for name in one.methods}
    qualified = {_qualify(one, name) for one in DSTACK_SERVICES for name in one.methods}
    valid = f"the methods are {', '.join(sorted(names))}, or of one API as in v1.Info"
    if not limited.methods:
        raise limited.error(f"no method given; {valid}")
    if unknown := [name for name in limited.methods if name not in names | qualified]:
        raise limited.error(f"unknown method {unknown[0][:64]!a}; {valid}")


def limited_app(guest: Guest, limited: LimitedSocket) -> App:
    """Return the application of a limited socket: some methods of dstack.sock, at the same paths.

    The other methods of dstack.sock are refused (403) and run nothing. There are no pages.
    """
    allowed = {*limited.methods}
    services = [
        service._replace(
            methods={
                name: one if {name, _qualify(service, name)} & allowed else _refused(name)
                for name, one in service.methods.items()
            }
        )
        for service in DSTACK_SERVICES
    ]
    return _rpc_app(limited.listener, guest, services)


def _qualify(service: Service, name: str) -> str:
    """Return the name of a method with the version of the guest API: `v1.Info` or `v0.Info`."""
    return f"{service.version or 'v0'}.{name}"


def _refused(name: str) -> Method:
    """Return a method that refuses each request (403), without decoding it.

    It stands for the method `name` on a socket that does not serve this one.
    """

    def refuse(_: Guest, __: None) -> None:
        text = f"{name}: not allowed on this socket, which is limited to other methods"
        raise MethodRefusedError(text)

    return Method(refuse)


def tappd_app(guest: Guest) -> App:
    """Return the application of tappd.sock: Tappd at `/prpc/`, and DstackGuest there and at `/`."""
    return _app("tappd", guest, [_AT_ROOT, _OLD_CLIENTS])


def external_app(
    guest: Guest, *, only_local: bool = False, auth: "ExternalAuth | None" = None
) -> App:
    """Return the application of the external listener: the service Worker, and the pages.

    Worker of the guest API v1 is at `/prpc/v1/`, that of v0 at `/prpc/` and `/prpc/v0/`.

    With `only_local` it accepts loopback names in the Host header only. Otherwise a web page could
    read this server by rebinding its own name to 127.0.0.1 (DNS rebinding). With `auth`, each route
    requires an access token with the scope of the route.

    Raises:
        UsageError: If a key or a scope in `auth` is not valid.
    """
    release = guest.release
    version = f"v{release.version} ({release.rev})".encode("ascii")
    headers = [(b"x-app-version", version)]
    views = make_views(guest, view.make_views(guest), linked=docs.list_paths(EXTERNAL_SERVICES))
    app = _app("http", guest, EXTERNAL_SERVICES, headers, views)
    app.guard = refuse_rebound_host if only_local else None
    if auth is not None:
        from attestkit.serve.external_auth import access_control  # lazy: needs libsodium

        scopes = access_control.assign_scopes(app.route_names, docs.list_paths(EXTERNAL_SERVICES))
        read_app_id = _app_id_reader(guest)
        app.access = access_control.AccessControl(auth, scopes, read_app_id, guest.now)
    return app


def _app_id_reader(guest: Guest) -> Callable[[], Awaitable[bytes]]:
    """Return a coroutine function that returns the app id, and caches it."""
    known = b""

    async def read() -> bytes:
        nonlocal known
        if not known:
            evidence = await guest.on_device(guest.decode_evidence)
            known = evidence.info.app_id
        return known

    return read


def guest_api_app(guest: Guest, *, shutdown: bool = False) -> App:
    """Return the application of the listener for the host: GuestApi at `/api/`, without pages.

    With `shutdown`, GuestApi.Shutdown powers off a machine that is not simulated.
    """
    from attestkit.serve.services import guest_api  # lazy: most servers do not have it

    app = _rpc_app("guest_api", guest, [guest_api.make_service(shutdown=shutdown)])
    app.access = guest_api.HostAccess()
    return app


def dev_app(guest: Guest) -> App:
    """Return the application for development over TCP: dstack.sock's, and Tappd at `/prpc/`.

    It serves keys without authentication: listen on loopback only. Requests that a web page could
    send are refused: by their headers, and for `EmitEvent` and every method that returns or uses a
    key also unless they are POST with `Content-Type: application/json`.
    """
    app = _app("dev_http", guest, DEV_SERVICES)
    app.guard = refuse_web_pages
    return app


def collateral_app(guest: Guest) -> App:
    """Return the application of the simulator's PCCS, and of the services for its GPUs.

    Raises:
        UsageError: If the guest is neither a simulated TD nor a simulated guest with GPUs.
    """
    from attestkit.backends.simulator import Simulator  # lazy: not needed on hardware
    from attestkit.serve.services.pccs import PccsApp, make_gpu_services, make_pccs

    simulator, pccs, gpus = guest.attester.backend, None, None
    if isinstance(simulator, Simulator):
        gpus = make_gpu_services(simulator)
        with suppress(UnsupportedError):  # not a TD
            pccs = make_pccs(simulator)
    if pccs is None and gpus is None:
        text = "--pccs-http: requires a simulated TD, or a simulated guest with GPUs"
        raise UsageError(text, reason="not_applicable")
    return PccsApp(pccs, _headers(guest), guest.stats.of("pccs"), gpus, guest.limits)


def _app(
    listener: str,
    guest: Guest,
    services: Sequence[Service],
    headers: Sequence[Header] = (),
    views: Mapping[str, View] = _NOTHING,
) -> RpcApp:
    """Return an application of these services, with views and the documents of its API.

    `listener` is the listener's name; `headers` are added to every response.
    """
    title, curl = _CURL_TARGETS[listener]
    api = Api(
        f"The guest agent API on {title}",
        guest.release.version,
        curl,
        services,
        docs.list_paths(services) | views.keys(),
        names_version=any(name == b"x-app-version" for name, _ in headers),
    )
    app = _rpc_app(listener, guest, services)
    app.headers, app.views = [*app.headers, *headers], {**docs.make_views(api), **views}
    return app


def _rpc_app(listener: str, guest: Guest, services: Sequence[Service]) -> RpcApp:
    return RpcApp(
        guest,
        services,
        headers=_headers(guest),
        limits=guest.limits,
        traffic=guest.stats.of(listener),
        run_id=guest.run_id,
    )


def _headers(guest: Guest) -> tuple[Header, ...]:
    return security_headers(guest.release.ident.encode("ascii"))


def _refuse(text: str) -> UsageError:
    return UsageError(text, reason="refused_origin")


def refuse_web_pages(scope: Scope) -> None:
    """Refuse requests that a web page may have sent.

    A page of another site sends `Origin`, its browser `Sec-Fetch-Site`, and an older browser at
    least `Referer`. A page that rebound its name to this machine sends that name as `Host`.

    Raises:
        UsageError: If the request has Origin, or Sec-Fetch-Site or Referer of another site, or no
            Host header with a loopback name.
    """
    hosts = []
    refuse_other_sites(scope["headers"])
    for name, value in scope["headers"]:
        if name == b"referer" and not _OUR_PAGES.match(value):
            raise _refuse("Referer header: the request comes from another site, which is refused")
        if name == b"host":
            hosts.append(value)
    if not hosts or not all(map(_OUR_HOST.fullmatch, hosts)):
        raise _refuse("Host header: missing or not a loopback name; use localhost or 127.0.0.1")


def refuse_rebound_host(scope: Scope) -> None:
    """Refuse requests whose Host header is present and not a loopback name (DNS rebinding).

    Browsers always send Host. A cross-site page that uses a loopback name can send requests, but
    cannot read the responses.

    Raises:
        UsageError: If a Host header is not a loopback name.
    """
    if not has_loopback_host(scope["headers"]):
        raise _refuse(
            "Host header: not a loopback name, and this simulator listens on loopback only; use "
            "localhost or 127.0.0.1, or give --http another address"
        )
