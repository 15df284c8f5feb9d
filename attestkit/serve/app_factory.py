"""Assembly of a server: applications of the listeners, and their bound sockets."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from attestkit.errors import UnsupportedError, UsageError
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Stats
from attestkit.serve.endpoints import BoundAddresses, ListenAddresses
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

__all__ = ["BoundServer", "ServerOptions", "build_server"]


class ServerOptions(NamedTuple):
    """Options of `serve()` other than attester, addresses and callbacks."""

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


class BoundServer(NamedTuple):
    """Listeners that are bound and not served yet."""

    ready: BoundAddresses
    listeners: "list[Listener]"
    paths: "list[UnixListener]"
    access_log: "AccessLog | None"

    def unlink(self) -> None:
        """Remove the paths of the unix sockets, so that new clients fail at once."""
        for path in self.paths:
            path.unlink()

    def flush(self) -> None:
        """Write the pending lines of the access log."""
        _flush(self.access_log)


def build_server(
    attester: "Attester | None",
    addresses: ListenAddresses,
    options: ServerOptions,
    stack: ExitStack,
) -> BoundServer:
    """Create the applications and bind the sockets; all are closed with `stack`.

    Raises:
        UsageError: If an address is invalid, all listeners are off, or the app is unknown.
        BackendBusyError: If another process listens on an address.
        ConfigError: If a socket cannot be created, or a host file or the engine's address is
            invalid.
    """
    _check_arguments(attester, addresses, options.verifier)
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
    bound = _listen(addresses, options.handed_over, stack)
    if "verifier_metrics" in bound.sockets:
        apps["verifier_metrics"] = _metrics_app(stats, bound.sockets["verifier_metrics"])
    if guest is not None:
        apps.update(_agent_apps(guest, addresses, bound.sockets.get("http")))
    from attestkit.serve.http.server import Listener  # lazy: imports uvicorn

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
    return BoundServer(BoundAddresses(bound.bound_addresses), listeners, bound.paths, access_log)


def _flush(access_log: "AccessLog | None") -> None:
    if access_log is not None:
        access_log.flush(patience=1.0)


def _check_arguments(
    attester: "Attester | None", addresses: ListenAddresses, verifier: "Verifier | None"
) -> None:
    agent = (
        addresses.dstack
        or addresses.tappd
        or addresses.http
        or addresses.dev_http
        or addresses.pccs
    )
    if not (agent or addresses.verifier):
        raise UsageError("listeners: all are off; turn one on", reason="missing")
    if agent and attester is None:
        raise UsageError("listeners of an agent: an attester is missing", reason="missing")
    if addresses.verifier and verifier is None:
        raise UsageError("verifier service: a Verifier is missing", reason="missing")
    if addresses.verifier_metrics and not addresses.verifier:
        raise UsageError(
            "verifier_metrics: only with the verifier service; turn it on", reason="conflict"
        )
    if addresses.dev_http and not (attester and attester.simulated):
        raise UsageError(
            "dev_http: for the simulator only, because it serves keys over TCP",
            reason="not_applicable",
        )


def _guest(attester: "Attester", options: ServerOptions, stats: Stats, limits: Limits) -> "Guest":
    import os
    import time

    from attestkit.serve.docker.engine import DOCKER
    from attestkit.serve.services.context import Guest, Release

    try:
        app_compose = options.app_compose or attester.app_compose
    except UnsupportedError as error:
        raise UsageError(
            f"app-compose file: missing: {error}; give --app-compose FILE", reason="missing"
        ) from error
    app_keys, ident = options.app_keys, options.ident
    if app_keys is None and attester.host is not None:
        with suppress(UnsupportedError):  # key methods fail with an explanation
            app_keys = attester.host.app_keys
    return Guest(
        attester,
        app_compose=app_compose,
        app_keys=app_keys,
        vm_config=attester.vm_config if options.vm_config is None else options.vm_config,
        now=time.time,  # noqa: TID251 - the clock is injected here
        random=os.urandom,
        release=None if ident is None else Release(ident=_mark_simulator(ident, attester)),
        data_disks=options.data_disks,
        stats=stats,
        limits=limits,
        docker=options.docker or DOCKER,
    )


def _mark_simulator(ident: str, attester: "Attester") -> str:
    """Return the Server header, with the word simulator if it is one."""
    if not attester.simulated or "simulator" in ident.lower():
        return ident
    return f"{ident} (attestkit simulator)"


class _BoundSockets(NamedTuple):
    """Bound sockets and their addresses."""

    sockets: "dict[str, socket]"  # by the name of the listener
    bound_addresses: dict[str, Path | str]
    paths: "list[UnixListener]"


def _listen(
    addresses: ListenAddresses, handed_over: "Mapping[str, socket]", stack: ExitStack
) -> _BoundSockets:
    """Bind the listeners without an inherited socket; all are closed with `stack`."""
    from attestkit.serve.config.option_values import Address
    from attestkit.serve.http.sockets import UnixListener, bind_tcp

    sockets = {}
    paths = []
    bound_addresses: dict[str, Path | str] = {}
    unix = (("dstack", addresses.dstack), ("tappd", addresses.tappd), ("http", addresses.http))
    for name, path in unix:
        if name in handed_over and name != "http":
            sockets[name] = stack.enter_context(handed_over[name])
            bound_addresses[name] = Path(sockets[name].getsockname())
        elif isinstance(path, Path) and name not in handed_over:
            listener = UnixListener(path.absolute(), addresses.socket_mode, addresses.socket_group)
            stack.callback(listener.close)
            paths.append(listener)
            sockets[name], bound_addresses[name] = listener.socket, listener.path
    tcp = (
        ("http", addresses.http),
        ("dev_http", addresses.dev_http),
        ("verifier", addresses.verifier),
        ("pccs", addresses.pccs),
        ("verifier_metrics", addresses.verifier_metrics),
    )
    for name, address in tcp:
        sock = handed_over.get(name)
        if sock is None and address is not None and not isinstance(address, Path):
            sock = bind_tcp(f"--{name.replace('_', '-')}", Address(*address))
        if sock is not None:
            sockets[name] = stack.enter_context(sock)
            bound_addresses[name] = f"http://{Address(*sock.getsockname()[:2])}"
    return _BoundSockets(sockets, bound_addresses, paths)


def _agent_apps(
    guest: "Guest", addresses: ListenAddresses, pages: "socket | None"
) -> "dict[str, App]":
    from attestkit.serve import listener_apps

    # On hardware, a proxy may forward any Host, and the external listener is public anyway.
    only_local = guest.attester.simulated and pages is not None and is_loopback(pages)
    of_simulator = {"pccs": listener_apps.collateral_app(guest)} if addresses.pccs else {}
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
    """Return the application of the verifier service; its threads end with `stack`."""
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
