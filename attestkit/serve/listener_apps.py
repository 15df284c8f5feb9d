"""Which application answers on which listener, its pages, and what goes with each response."""

import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from attestkit.errors import NotFoundError, UsageError
from attestkit.serve.api_docs import views as docs
from attestkit.serve.api_docs.api_model import Api
from attestkit.serve.config.option_values import HTTP_PORT
from attestkit.serve.container_logs import view
from attestkit.serve.http.asgi import App, Guard, Scope
from attestkit.serve.http.request_checks import is_called_as_ours
from attestkit.serve.http.views import Answer, Asked, Header, View
from attestkit.serve.metrics.agent import Metrics
from attestkit.serve.pages.dashboard import Dashboard
from attestkit.serve.pages.static_files import ASSETS, asset
from attestkit.serve.rpc.dispatcher import RpcApp, Service
from attestkit.serve.services import dstack_guest, tappd, worker_api
from attestkit.serve.services.context import Guest
from attestkit.serve.services.worker_api import SERVICE

__all__ = ["collateral_app", "dev_app", "dstack_app", "external_app", "page_views", "tappd_app"]

# What a browser sees on the external listener: the dashboard, the files it loads, the metrics.

_NOTHING: Final[Mapping[str, View]] = MappingProxyType({})
_FOREVER: Final = (b"cache-control", b"public, max-age=31536000, immutable")
_ASK_AGAIN: Final = (b"cache-control", b"no-cache")


def page_views(
    guest: Guest, others: Mapping[str, View] = _NOTHING, linked: Collection[str] = ()
) -> dict[str, View]:
    """Return what GET shows, by path: the dashboard, what it needs, and `others`.

    The dashboard links to what is there, and to `linked`. What the app does not publish is not
    there at all.
    """
    found = {"/assets/": View(_show_asset, named=True), **others}
    if guest.app_compose.public_sysinfo:
        found["/metrics"] = View(Metrics().show)
    methods = {f"{SERVICE.mount}{SERVICE.prefix}{name}" for name in SERVICE.methods}
    return {"/": View(Dashboard({*methods, *found, *linked}).show), **found}


async def _show_asset(_: Guest, asked: Asked) -> Answer:
    """Show a file of the page; under the address with its digest it can be kept for good."""
    if asked.name not in ASSETS:
        raise NotFoundError(f"No such path: /assets/{asked.name}")
    content, digest = asset(asked.name)
    kept = asked.query == b"v=%s" % digest.encode("ascii")
    return Answer(ASSETS[asked.name], content, [_FOREVER if kept else _ASK_AGAIN])


# The older clients inherit the methods of the newer ones and call them under their own names, or
# at the root of their own socket; both lead to the same keys.
_OLD_CLIENTS = tappd.SERVICE._replace(
    methods={**dstack_guest.SERVICE.methods, **tappd.SERVICE.methods}
)
_HOST = rb"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?"
_OUR_HOST = re.compile(_HOST, re.IGNORECASE)
_OUR_PAGES = re.compile(rb"http://" + _HOST + rb"(/|\Z)", re.IGNORECASE)


# What the documents call a listener, and how one gets to where it is documented to be.
_REACHED = {
    "dstack": ("dstack.sock", "--unix-socket /var/run/dstack.sock http://dstack"),
    "tappd": ("tappd.sock", "--unix-socket /var/run/tappd.sock http://tappd"),
    "http": ("the external listener", f"http://localhost:{HTTP_PORT}"),
    "dev_http": ("the development listener", "http://localhost:8091"),
}


def dstack_app(guest: Guest) -> RpcApp:
    """Return the application of dstack.sock: DstackGuest at `/`."""
    return _app("dstack", guest, [dstack_guest.SERVICE])


def tappd_app(guest: Guest) -> App:
    """Return the application of tappd.sock: Tappd at `/prpc/`, and DstackGuest there and at `/`."""
    return _app("tappd", guest, [dstack_guest.SERVICE, _OLD_CLIENTS])


def external_app(guest: Guest, *, only_local: bool = False) -> App:
    """Return the application that strangers reach over TCP: Worker at `/prpc/`, and the pages.

    With `only_local` it refuses the name of any other machine, as a web page would send whose name
    was rebound to this one: then it could read what is shown here.
    """
    release = guest.release
    version = f"v{release.version} ({release.rev})".encode("ascii")
    headers = [(b"x-app-version", version)]
    views = page_views(guest, view.views(guest), linked=docs.PATHS)
    guard = refuse_rebound if only_local else None
    return _app("http", guest, [worker_api.SERVICE], headers, views=views, guard=guard)


def dev_app(guest: Guest) -> App:
    """Return the application for development over TCP: DstackGuest at `/`, Tappd at `/prpc/`.

    It hands out keys, so it must listen on loopback only and refuses what a web page could send.
    """
    return _app("dev_http", guest, [dstack_guest.SERVICE, _OLD_CLIENTS], guard=refuse_web_pages)


def collateral_app(guest: Guest) -> App:
    """Return the application of the simulator's PCCS.

    Raises:
        UsageError: The guest is not on the simulator, whose collateral it is.
    """
    from attestkit.backends.simulator import Simulator  # late: servers on hardware have none
    from attestkit.serve.services.pccs import PccsApp, pccs_of

    simulator = guest.attester.backend
    if not isinstance(simulator, Simulator):
        raise UsageError("collateral is served for the simulator only")
    if simulator.platform != "tdx":
        raise UsageError("collateral is Intel's, so it is served for the simulated TD only")
    return PccsApp(pccs_of(simulator), _headers(guest), guest.stats.of("pccs"))


def _app(
    listener: str,
    guest: Guest,
    services: Sequence[Service],
    headers: Sequence[Header] = (),
    *,
    views: Mapping[str, View] | None = None,
    guard: Guard | None = None,
) -> RpcApp:
    pages = views or {}
    title, curl = _REACHED[listener]
    api = Api(
        f"The guest agent API on {title}",
        guest.release.version,
        curl,
        services,
        docs.PATHS | pages.keys(),
        names_version=any(name == b"x-app-version" for name, _ in headers),
    )
    return RpcApp(
        guest,
        services,
        views={**docs.views_of(api), **pages},
        headers=[*_headers(guest), *headers],
        guard=guard,
        limits=guest.limits,
        traffic=guest.stats.of(listener),
        run_id=guest.run_id,
    )


def _headers(guest: Guest) -> list[Header]:
    return [
        (b"server", guest.release.ident.encode("ascii")),
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"SAMEORIGIN"),
        (b"permissions-policy", b"interest-cohort=()"),
    ]


def refuse_web_pages(scope: Scope) -> None:
    """Let only requests through that no web page can have made.

    A page of another site sends its `Origin`, or the browser says `Sec-Fetch-Site`, or an older one
    at least the `Referer`; a page whose name was rebound to this machine sends that name as `Host`.

    Raises:
        UsageError: The request names an origin, or a host that is not this machine.
    """
    hosts = []
    for name, value in scope["headers"]:
        if name == b"origin":
            raise UsageError("requests with an Origin are refused: this port is not for web pages")
        if name == b"sec-fetch-site" and value not in {b"none", b"same-origin"}:
            raise UsageError("requests from other sites are refused")
        if name == b"referer" and not _OUR_PAGES.match(value):
            raise UsageError("requests from the pages of other sites are refused")
        if name == b"host":
            hosts.append(value)
    if not hosts or not all(map(_OUR_HOST.fullmatch, hosts)):
        raise UsageError("the Host is refused: use localhost or 127.0.0.1")


def refuse_rebound(scope: Scope) -> None:
    """Let only requests through that name this machine as one does from itself, or name none.

    Browsers always name one, so what a page of another site reads here it does not get by calling
    this machine by its own name. Without that name a page of another site sends, but reads nothing.

    Raises:
        UsageError: The request names another host.
    """
    if not is_called_as_ours(scope["headers"]):
        raise UsageError(
            "the Host is refused, for this is a simulator that listens on the loopback address "
            "alone: use localhost or 127.0.0.1, or have --http listen on another address"
        )
