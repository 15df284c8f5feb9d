"""Everything that a server is made of, wired: applications, and the sockets that lead to them."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from attestkit.errors import UnsupportedError, UsageError
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Stats
from attestkit.serve.endpoints import Places, Ready
from attestkit.serve.http.request_checks import is_loopback
from attestkit.serve.machine_info import DATA_DISKS

if TYPE_CHECKING:
    from socket import socket

    from attestkit.attester import Attester
    from attestkit.dstack.app_compose import AppCompose
    from attestkit.keys import AppKeys
    from attestkit.serve.http.asgi import App
    from attestkit.serve.http.server import Listener
    from attestkit.serve.http.sockets import UnixListener
    from attestkit.serve.server_log.access_log import AccessLog
    from attestkit.serve.services.context import Guest
    from attestkit.verifier.ear.result_token import EarKey
    from attestkit.verifier.pipeline import Verifier

__all__ = ["Options", "Wired", "wire"]


class Options(NamedTuple):
    """What `serve()` takes besides the attester, the places and those who are told."""

    handed_over: "Mapping[str, socket]" = MappingProxyType({})
    app_compose: "AppCompose | None" = None
    app_keys: "AppKeys | None" = None
    vm_config: str | None = None
    verifier: "Verifier | None" = None
    ident: str | None = None
    data_disks: Sequence[str] = DATA_DISKS
    limits: Limits | None = None
    access_log: "AccessLog | None" = None
    docker: str | None = None
    ear_key: "EarKey | None" = None
    stats: Stats | None = None


class Wired(NamedTuple):
    """Listeners that are bound and not served yet."""

    ready: Ready
    listeners: "list[Listener]"
    paths: "list[UnixListener]"
    access_log: "AccessLog | None"

    def unlink(self) -> None:
        """Remove our paths, for nobody is to find a door that is about to close."""
        for path in self.paths:
            path.unlink()

    def flush(self) -> None:
        """Write what the access log holds back."""
        _flush(self.access_log)


def wire(attester: "Attester | None", places: Places, options: Options, stack: ExitStack) -> Wired:
    """Make the applications and bind the sockets; all of it ends with `stack`.

    Raises:
        UsageError: A place cannot be, there is none, or nobody says what the app is.
        BackendBusyError: Somebody else listens at one of the places.
        ConfigError: A socket cannot be made, a file of the host or the engine's address is wrong.
    """
    _refuse_what_cannot_be(attester, places, options.verifier)
    stats, limits = options.stats or Stats(), options.limits or Limits()
    access_log = options.access_log
    stack.callback(_flush, access_log)
    apps: dict[str, App] = {}
    guest = None
    if options.verifier is not None:
        apps["verifier"] = _verifier_app(options.verifier, options.ear_key, stats, limits, stack)
    if attester is not None:
        guest = _guest(attester, options, stats, limits)
        stack.callback(guest.close)
    bound = _listen(places, options.handed_over, stack)
    if "verifier_metrics" in bound.sockets:
        apps["verifier_metrics"] = _metrics_app(stats, bound.sockets["verifier_metrics"])
    if guest is not None:
        apps.update(_agent_apps(guest, places, bound.sockets.get("http")))
    from attestkit.serve.http.server import Listener  # uvicorn: for those who serve, and late

    listeners = [
        Listener(
            apps[name],
            sock,
            limits,
            name,
            stats.of(name),
            access_log,
            handed_over=name in options.handed_over,
        )
        for name, sock in bound.sockets.items()
    ]
    return Wired(Ready(bound.where), listeners, bound.paths, access_log)


def _flush(access_log: "AccessLog | None") -> None:
    if access_log is not None:
        access_log.flush(patience=1.0)


def _refuse_what_cannot_be(
    attester: "Attester | None", places: Places, verifier: "Verifier | None"
) -> None:
    agent = places.dstack or places.tappd or places.http or places.dev_http or places.pccs
    if not (agent or places.verifier):
        raise UsageError("every listener is off: there is nothing to serve")
    if agent and attester is None:
        raise UsageError("an agent's listeners need an attester")
    if places.verifier and verifier is None:
        raise UsageError("the verifier service needs a Verifier")
    if places.verifier_metrics and not places.verifier:
        raise UsageError("the metrics of a verifier need the verifier service")
    if places.dev_http and not (attester and attester.simulated):
        raise UsageError("keys are given out over TCP by the simulator only")


def _guest(attester: "Attester", options: Options, stats: Stats, limits: Limits) -> "Guest":
    import os
    import time

    from attestkit.serve.docker.engine import DOCKER
    from attestkit.serve.services.context import Guest, Release

    try:
        app_compose = options.app_compose or attester.app_compose
    except UnsupportedError as error:
        raise UsageError(
            f"a server must know its app, by an app-compose file: {error}; "
            "--app-compose FILE names one"
        ) from error
    app_keys, ident = options.app_keys, options.ident
    if app_keys is None and attester.host is not None:
        with suppress(UnsupportedError):  # the methods that need them say so
            app_keys = attester.host.app_keys
    return Guest(
        attester,
        app_compose=app_compose,
        app_keys=app_keys,
        vm_config=attester.vm_config if options.vm_config is None else options.vm_config,
        now=time.time,  # noqa: TID251 - here the clock is handed in
        random=os.urandom,
        release=None if ident is None else Release(ident=_honest(ident, attester)),
        data_disks=options.data_disks,
        stats=stats,
        limits=limits,
        docker=options.docker or DOCKER,
    )


def _honest(ident: str, attester: "Attester") -> str:
    """Return the name for the Server header, with the word that a simulator is never without."""
    if not attester.simulated or "simulator" in ident.lower():
        return ident
    return f"{ident} (attestkit simulator)"


class _Bound(NamedTuple):
    """What listens."""

    sockets: "dict[str, socket]"  # by the name of the listener
    where: dict[str, Path | str]
    paths: "list[UnixListener]"


def _listen(places: Places, handed_over: "Mapping[str, socket]", stack: ExitStack) -> _Bound:
    """Bind what was not handed over; what is bound is closed, and removed, with `stack`."""
    from attestkit.serve.config.option_values import Address
    from attestkit.serve.http.sockets import UnixListener, bind_tcp

    sockets = {}
    paths = []
    where: dict[str, Path | str] = {}
    doors = (("dstack", places.dstack), ("tappd", places.tappd), ("http", places.http))
    for name, path in doors:
        if name in handed_over and name != "http":
            sockets[name] = stack.enter_context(handed_over[name])
            where[name] = Path(sockets[name].getsockname())
        elif isinstance(path, Path) and name not in handed_over:
            listener = UnixListener(path.absolute(), places.socket_mode, places.socket_group)
            stack.callback(listener.close)
            paths.append(listener)
            sockets[name], where[name] = listener.socket, listener.path
    addresses = (
        ("http", places.http),
        ("dev_http", places.dev_http),
        ("verifier", places.verifier),
        ("pccs", places.pccs),
        ("verifier_metrics", places.verifier_metrics),
    )
    for name, address in addresses:
        taken = handed_over.get(name)
        if taken is None and address is not None and not isinstance(address, Path):
            taken = bind_tcp(f"--{name.replace('_', '-')}", Address(*address))
        if taken is not None:
            sockets[name] = stack.enter_context(taken)
            where[name] = f"http://{Address(*taken.getsockname()[:2])}"
    return _Bound(sockets, where, paths)


def _agent_apps(guest: "Guest", places: Places, pages: "socket | None") -> "dict[str, App]":
    from attestkit.serve import listener_apps

    # On hardware a proxy may stand before it that hands any name on, and what it shows is public.
    only_local = guest.attester.simulated and pages is not None and is_loopback(pages)
    of_simulator = {"pccs": listener_apps.collateral_app(guest)} if places.pccs else {}
    return {
        **of_simulator,
        "dstack": listener_apps.dstack_app(guest),
        "tappd": listener_apps.tappd_app(guest),
        "http": listener_apps.external_app(guest, only_local=only_local),
        "dev_http": listener_apps.dev_app(guest),
    }


def _metrics_app(stats: Stats, sock: "socket") -> "App":
    from attestkit.serve.verifier_service.metrics import NAME, VerifierMetricsApp

    return VerifierMetricsApp(lambda: stats, stats.of(NAME), only_local=is_loopback(sock))


def _verifier_app(
    verifier: "Verifier",
    ear_key: "EarKey | None",
    stats: Stats,
    limits: Limits,
    stack: ExitStack,
) -> "App":
    """Return the verifier service; its threads end with `stack`."""
    from concurrent.futures import ThreadPoolExecutor

    from attestkit.serve.verifier_service.app import FETCHERS, WORKERS, VerifierApp

    executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="verifier")
    fetcher = ThreadPoolExecutor(FETCHERS, thread_name_prefix="fetcher")
    for one in (executor, fetcher):
        stack.callback(one.shutdown, cancel_futures=True)
    return VerifierApp(
        verifier,
        executor,
        fetcher=fetcher,
        max_body=limits.verifier_body,
        traffic=stats.of("verifier"),
        verdicts=stats.verdicts,
        ear_key=ear_key,
    )
