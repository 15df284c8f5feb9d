"""Assembly of a server: applications of the listeners, and their bound sockets."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from attestkit._argument_checks import needs_extra
from attestkit.errors import UnsupportedError, UsageError
from attestkit.serve import endpoints
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Stats
from attestkit.serve.http.request_checks import is_loopback
from attestkit.serve.lazy_import import require_packages
from attestkit.serve.machine_info import DATA_DISKS

if TYPE_CHECKING:
    from socket import socket

    from attestkit.attester import Attester
    from attestkit.dstack.app_compose import AppCompose
    from attestkit.keys import AppKeys
    from attestkit.kms.client import KmsClient
    from attestkit.serve.external_auth.access_control import ExternalAuth
    from attestkit.serve.http.asgi import App
    from attestkit.serve.http.server import Listener, Work
    from attestkit.serve.http.sockets import UnixListener
    from attestkit.serve.server_log.access_log import AccessLog
    from attestkit.serve.services.context import Guest
    from attestkit.verifier.ear.signed_token import EarKey
    from attestkit.verifier.verifier import Verifier


class ServerOptions(NamedTuple):
    """Options of a server.

    Attributes:
        handed_over: Inherited listening sockets by the name of their listener. Such a socket
            replaces the address of its listener. Its path and mode do not change, and it is closed
            when the server ends.
        app_compose: The app's compose file; default: the attester's.
        app_keys: The app's keys; default: the attester's. Without keys, key methods fail.
        verifier: Verifies the evidence that clients send to `addresses.verifier`, and applies its
            policy; required with that listener.
        ident: Value of the `Server` header, printable ASCII; default: attestkit's name. If the TEE
            is simulated, the word simulator is added.
        data_disks: Mount points of the file systems in the system information.
        limits: Limits of every listener.
        access_log: Records every request; flushed at shutdown. None: requests are not logged.
        docker: Address of the container engine; default: `unix:///var/run/docker.sock`.
        ear_key: Signs attestation results on request; None: no signed results.
        stats: Counters to update; default: new ones.
        external_auth: Access control of the external listener; None: no token is required.
        guest_api_shutdown: Whether GuestApi.Shutdown powers off a machine that is not simulated.
        has_emit_event: Whether the method EmitEvent works; otherwise it returns the error of
            dstack's agents since 0.6.0.
        kms: Client of the KMS that signs certificates, if the app's keys come from a KMS; default:
            a client with the URL and the root CA in the key file.
    """

    handed_over: "Mapping[str, socket]" = MappingProxyType({})
    app_compose: "AppCompose | None" = None
    app_keys: "AppKeys | None" = None
    verifier: "Verifier | None" = None
    ident: str | None = None
    data_disks: Sequence[str] = DATA_DISKS
    limits: Limits | None = None
    access_log: "AccessLog | None" = None
    docker: str | None = None
    ear_key: "EarKey | None" = None
    stats: Stats | None = None
    external_auth: "ExternalAuth | None" = None
    guest_api_shutdown: bool = False
    has_emit_event: bool = True
    kms: "KmsClient | None" = None


class BoundServer(NamedTuple):
    """Listeners that are bound and not served yet."""

    ready: endpoints.BoundAddresses
    listeners: "list[Listener]"
    paths: "list[UnixListener]"  # the unix sockets among them
    background: "Sequence[Work]" = ()  # to run beside the listeners

    def unlink(self) -> None:
        """Remove the paths of the unix sockets, so that new clients fail at once."""
        for path in self.paths:
            path.unlink()


def build_server(
    attester: "Attester | None",
    addresses: endpoints.ListenAddresses,
    options: ServerOptions,
    stack: ExitStack,
) -> BoundServer:
    """Create the applications and bind the sockets; all are closed with `stack`.

    Raises:
        UsageError: If an address or option is invalid or does not fit the others (as `verifier`
            without a Verifier), all listeners are off, neither `options` nor the attester has the
            app's compose file, or a package of attestkit's extra `serve` is not installed.
        BackendBusyError: If another process listens on an address.
        ConfigError: If a socket cannot be created, or the address of the container engine or a file
            in the folder that the host shares with the guest is invalid.
    """
    _check_arguments(attester, addresses, options.verifier)
    with needs_extra("server", "serve"):
        from attestkit.serve.http.server import Listener  # lazy: imports uvicorn
    require_packages(name for name, _ in addresses.listeners())
    stats, limits = options.stats or Stats(), options.limits or Limits()
    if options.access_log is not None:
        stack.callback(options.access_log.flush, patience=1.0)
    apps: dict[str, App] = {}
    guest = None
    if options.verifier is not None:
        apps["verifier"] = _verifier_app(options.verifier, options, stats, stack)
    if attester is not None:
        guest = _guest(attester, options, stats, limits)
        stack.callback(guest.close)
    bound = _listen(addresses, options.handed_over, stack)
    if "verifier_metrics" in bound.sockets:
        apps["verifier_metrics"] = _metrics_app(stats, bound.sockets["verifier_metrics"])
    if guest is not None:
        apps.update(_agent_apps(guest, addresses, bound.sockets, options))
    given, log = options.handed_over, options.access_log
    listeners = [
        Listener(apps[name], sock, limits, name, stats.of(name), log, handed_over=name in given)
        for name, sock in bound.sockets.items()
    ]
    methods = {one.listener: one.methods for one in addresses.limited}
    monitor = guest.health_monitor if guest is not None and "http" in bound.sockets else None
    background = [] if monitor is None else [monitor.run]
    ready = endpoints.BoundAddresses(bound.bound_addresses, methods)
    return BoundServer(ready, listeners, bound.paths, background)


def _check_arguments(
    attester: "Attester | None", addresses: endpoints.ListenAddresses, verifier: "Verifier | None"
) -> None:
    agent = any(getattr(addresses, name) for name in endpoints.AGENT_LISTENERS) or bool(
        addresses.limited
    )
    if addresses.guest_api is not None and not agent:
        text = "guest_api: requires another listener of the agent, such as dstack; turn one on"
        raise UsageError(text, reason="conflict")
    if not (agent or addresses.verifier):
        raise UsageError("listeners: all are off; give one, such as dstack", reason="missing")
    if agent and attester is None:
        raise UsageError("attester: missing for an agent's listeners; pass one", reason="missing")
    if addresses.verifier and verifier is None:
        raise UsageError("verifier: missing for the verifier service; pass one", reason="missing")
    if addresses.verifier_metrics and not addresses.verifier:
        text = "verifier_metrics: requires the verifier service; give the address verifier too"
        raise UsageError(text, reason="conflict")
    if addresses.dev_http and not (attester and attester.simulated):
        text = "dev_http: requires a simulated attester, because it serves keys over TCP"
        raise UsageError(text, reason="not_applicable")
    if addresses.limited:
        from attestkit.serve.listener_apps import check_methods  # lazy: not needed by a verifier

        addresses.check_limited()
        for one in addresses.limited:
            check_methods(one)


def _guest(attester: "Attester", options: ServerOptions, stats: Stats, limits: Limits) -> "Guest":
    import os
    import time

    from attestkit.serve.docker.engine import DOCKER
    from attestkit.serve.services.context import Guest, Release

    try:
        app_compose = options.app_compose or attester.app_compose
    except UnsupportedError as error:
        text = f"app-compose file: missing: {error}; give --app-compose FILE"
        raise UsageError(text, reason="missing") from error
    app_keys, ident = options.app_keys, options.ident
    if app_keys is None and attester.host is not None:
        with suppress(UnsupportedError):  # key methods fail with an explanation
            app_keys = attester.host.app_keys
    return Guest(
        attester,
        app_compose=app_compose,
        app_keys=app_keys,
        now=time.time,  # noqa: TID251 - the clock is injected here
        random=os.urandom,
        release=None if ident is None else Release(ident=_mark_simulator(ident, attester)),
        data_disks=options.data_disks,
        stats=stats,
        limits=limits,
        docker=options.docker or DOCKER,
        has_emit_event=options.has_emit_event,
        kms=options.kms,
    )


def _mark_simulator(ident: str, attester: "Attester") -> str:
    """Return `ident`, the Server header; for a simulated attester with the word simulator."""
    if not attester.simulated or "simulator" in ident.lower():
        return ident
    return f"{ident} (attestkit simulator)"


class _BoundSockets(NamedTuple):
    """Bound sockets and their addresses."""

    sockets: "dict[str, socket]"  # by the name of the listener
    bound_addresses: dict[str, Path | str]
    paths: "list[UnixListener]"


def _listen(
    addresses: endpoints.ListenAddresses, handed_over: "Mapping[str, socket]", stack: ExitStack
) -> _BoundSockets:
    """Bind a socket for each address that has none in `handed_over`.

    That has inherited sockets by the name of their listener. All sockets, inherited ones too, are
    closed when `stack` is closed.
    """
    found = _BoundSockets({}, {}, [])
    configured = dict(addresses.listeners())
    given = [name for name in endpoints.LISTENERS if name in handed_over and name not in configured]
    for name in (*configured, *given):
        sock = handed_over.get(name)
        if sock is None:
            sock = _bind(name, configured[name], addresses, found.paths, stack)
        found.sockets[name] = stack.enter_context(sock)
        _check_exposure(name, sock)
        found.bound_addresses[name] = _format_address(sock)
    return found


def _check_exposure(name: str, sock: "socket") -> None:
    """Refuse a socket over which another machine could use keys or the methods of GuestApi.

    `name` is the name of the socket's listener.

    Raises:
        UsageError: If `dstack`, `tappd` or a limited socket is not a unix socket, `dev_http` not a
            loopback address, or `guest_api` a TCP address.
    """
    from socket import AF_UNIX

    from attestkit.serve.http.sockets import is_vsock

    is_unix = sock.family == AF_UNIX and not is_vsock(sock)
    problem = ""
    if (name in {"dstack", "tappd"} or name.startswith(endpoints.LIMITED_PREFIX)) and not is_unix:
        problem = "must be a unix socket, because it serves keys"
    elif name == "guest_api" and not (is_unix or is_vsock(sock)):
        problem = "must be a vsock address or a unix socket"
    elif name == "dev_http" and not is_loopback(sock):
        problem = "must be a loopback address, because it serves keys without authentication"
    if problem:
        raise UsageError(f"{name}: {problem}", reason="wrong_value")


def _bind(
    name: str,
    address: tuple[str, int] | endpoints.VsockAddress | Path,
    addresses: endpoints.ListenAddresses,
    paths: "list[UnixListener]",
    stack: ExitStack,
) -> "socket":
    """Return a socket that listens at `address`, for the listener `name`.

    A unix socket gets the mode and group in `addresses`; it is added to `paths`, and its path is
    removed when `stack` is closed.
    """
    from attestkit.serve.config.option_values import Address
    from attestkit.serve.http.sockets import UnixListener, bind_tcp

    if isinstance(address, endpoints.VsockAddress):
        from attestkit.serve.http.sockets import bind_vsock

        return bind_vsock("--guest-api", address)
    if not isinstance(address, Path):
        return bind_tcp(endpoints.option_of(name), Address(*address))
    listener = UnixListener(address.absolute(), addresses.socket_mode, addresses.socket_group)
    stack.callback(listener.close)
    paths.append(listener)
    return listener.socket


def _format_address(sock: "socket") -> Path | str:
    """Return the path of a unix socket, or the URL of another one (`http://...`, `vsock:...`)."""
    from attestkit.serve.config.option_values import Address
    from attestkit.serve.http.sockets import is_vsock

    where = sock.getsockname()
    if is_vsock(sock):
        cid, port = where
        return str(endpoints.VsockAddress(port, cid))
    return Path(where) if isinstance(where, str) else f"http://{Address(*where[:2])}"


def _agent_apps(
    guest: "Guest",
    addresses: endpoints.ListenAddresses,
    sockets: "Mapping[str, socket]",
    options: ServerOptions,
) -> "dict[str, App]":
    from attestkit.serve import listener_apps

    pages = sockets.get("http")
    # On hardware, a proxy may forward any Host, and the external listener is public anyway.
    only_local = guest.attester.simulated and pages is not None and is_loopback(pages)
    optional: dict[str, App] = {}
    if "pccs" in sockets:
        optional["pccs"] = listener_apps.collateral_app(guest)
    if "guest_api" in sockets:
        shutdown = options.guest_api_shutdown
        optional["guest_api"] = listener_apps.guest_api_app(guest, shutdown=shutdown)
    return {
        **optional,
        "dstack": listener_apps.dstack_app(guest),
        "tappd": listener_apps.tappd_app(guest),
        "http": listener_apps.external_app(
            guest, only_local=only_local, auth=options.external_auth
        ),
        "dev_http": listener_apps.dev_app(guest),
        **{one.listener: listener_apps.limited_app(guest, one) for one in addresses.limited},
    }


def _metrics_app(stats: Stats, sock: "socket") -> "App":
    from attestkit.serve.verifier_service.metrics import NAME, VerifierMetricsApp

    return VerifierMetricsApp(lambda: stats, stats.of(NAME), only_local=is_loopback(sock))


def _verifier_app(
    verifier: "Verifier", options: ServerOptions, stats: Stats, stack: ExitStack
) -> "App":
    """Return the application of the verifier service; its threads end with `stack`."""
    from attestkit.serve.job_queue import JobThreads
    from attestkit.serve.verifier_service.app import FETCHERS, WORKERS, VerifierApp

    executor, fetcher = JobThreads(WORKERS, "verifier"), JobThreads(FETCHERS, "fetcher")
    for one in (executor, fetcher):
        stack.callback(one.shutdown)
    return VerifierApp(
        verifier,
        executor,
        fetcher,
        limits=options.limits or Limits(),
        traffic=stats.of("verifier"),
        verdicts=stats.verdicts,
        ear_key=options.ear_key,
    )
