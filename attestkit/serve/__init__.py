"""The dstack guest agent API on unix sockets and TCP, over an Attester.

`python -m attestkit.serve` is the program; `serve()` is the same for programs that bring their own
Attester. HTTP is a coat: everything below works without this package.
"""

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from attestkit.serve.system import DATA_DISKS

if TYPE_CHECKING:
    from socket import socket

    from attestkit.app_compose import AppCompose
    from attestkit.attester import Attester
    from attestkit.keys import AppKeys
    from attestkit.serve.access_log import AccessLog
    from attestkit.serve.guest import Guest
    from attestkit.serve.limits import Limits
    from attestkit.serve.rpc import App
    from attestkit.serve.sockets import UnixListener
    from attestkit.serve.stats import Stats
    from attestkit.verifier.pipeline import Verifier

__all__ = ["Places", "Ready", "serve"]


class Places(NamedTuple):
    """Where to listen; None is not at all. TCP places are (host, port), port 0 is any free one.

    Only `http` may be a unix socket instead, with the mode and group of the others.
    """

    dstack: Path | None = None
    tappd: Path | None = None
    http: tuple[str, int] | Path | None = None
    dev_http: tuple[str, int] | None = None
    socket_mode: int = 0o600
    socket_group: str | None = None
    verifier: tuple[str, int] | None = None
    pccs: tuple[str, int] | None = None


class Ready:
    """What listens; printed, it is the line that says so to a program that waits for it.

    Attributes:
        places: The path, or the URL with the real port, of each listener that is on, by its name:
            dstack, tappd, http, dev_http, verifier, pccs.
    """

    __slots__ = ("places",)

    def __init__(self, places: Mapping[str, Path | str]) -> None:
        self.places = places

    def __str__(self) -> str:
        from shlex import quote  # changes nothing unless a path has blanks in it

        return " ".join(
            ["ready", *(f"{name}={quote(str(at))}" for name, at in self.places.items())]
        )


def serve(  # noqa: PLR0913 - everything by name
    attester: "Attester | None",
    places: Places,
    *,
    on_ready: Callable[[Ready], None] = lambda _: None,
    on_stop: Callable[[], None] = lambda: None,
    background: "Sequence[Callable[[Ready], Coroutine[Any, Any, None]]]" = (),
    handed_over: "Mapping[str, socket] | None" = None,
    app_compose: "AppCompose | None" = None,
    app_keys: "AppKeys | None" = None,
    vm_config: str | None = None,
    verifier: "Verifier | None" = None,
    ident: str | None = None,
    data_disks: Sequence[str] = DATA_DISKS,
    limits: "Limits | None" = None,
    access_log: "AccessLog | None" = None,
    docker: str | None = None,
) -> int:
    """Serve the guest agent API, or the verifier service, or both, until a signal says to stop.

    SIGTERM, SIGINT and SIGHUP stop it in good order: nobody is let in any more, whoever is in gets
    an answer. A second SIGTERM or SIGINT ends the process at once.

    Args:
        attester: Makes the evidence; it stays open. None: only `places.verifier` is served.
        places: Where to listen. `dev_http` needs a simulated TEE and a loopback address, `pccs` the
            simulator.
        on_ready: Called once, when every listener accepts.
        on_stop: Called once, when the server begins to stop.
        background: Coroutines that run beside the listeners until then.
        handed_over: Sockets that listen already, by the name of their listener; they are taken in
            place of what `places` says, keep their path and mode, and are closed.
        app_compose: What the app was deployed from; default what `attester` knows.
        app_keys: The app's keys; default those that `attester` has; without any the key methods say
            so.
        vm_config: JSON text that is given back unchanged; default what `attester` knows.
        verifier: Judges what comes to `places.verifier`, by its policy too.
        ident: What the Server header says, in printable ASCII; default our name. With a simulator
            it says so in any case.
        data_disks: Mount points of the file systems that the figures tell about.
        limits: How much, how many, how long; of every listener.
        access_log: Takes every request; what it holds back is written at the end.
        docker: Where the container engine is; default `unix:///var/run/docker.sock`.

    Returns:
        How many connections were cut off, because their requests outlasted `Limits.drain_seconds`.
        Where there are any the device, or its thread, may still be at work, and is not waited for.

    Raises:
        UsageError: A place cannot be, there is none, or nobody says what the app is.
        BackendBusyError: Somebody else listens at one of the places.
        ConfigError: A socket cannot be made, a file of the host or the engine's address is wrong.
    """
    from attestkit.serve.limits import Limits
    from attestkit.serve.stats import Stats

    _refuse_what_cannot_be(attester, places, verifier)
    common = _Common(Stats(), limits or Limits(), access_log)
    with ExitStack() as stack:
        stack.callback(common.flush)
        apps = {} if verifier is None else {"verifier": _verifier_app(verifier, common, stack)}
        if attester is not None:
            guest = _guest(
                attester, app_compose, app_keys, vm_config, ident, data_disks, docker, common
            )
            stack.callback(guest.close)
            apps.update(_agent_apps(guest, places))
        bound = _listen(places, handed_over or {}, stack)
        bound = bound._replace(on_ready=on_ready, on_stop=on_stop)
        cut_off = _run(bound, apps, common, [partial(work, bound.ready) for work in background])
        if cut_off:
            common.flush()
            stack.pop_all()  # what their requests wait for may take for ever
        return cut_off


class _Common(NamedTuple):
    """What all listeners share."""

    stats: "Stats"
    limits: "Limits"
    access_log: "AccessLog | None"

    def flush(self) -> None:
        """Write what the access log holds back."""
        if self.access_log is not None:
            self.access_log.flush(patience=1.0)


class _Bound(NamedTuple):
    """What listens, and who is told."""

    ready: Ready
    sockets: "dict[str, socket]"  # by the name of the listener
    handed_over: Collection[str]  # names of those that are not ours to turn people away from
    paths: "list[UnixListener]"
    on_ready: Callable[[Ready], None] = lambda _: None
    on_stop: Callable[[], None] = lambda: None

    def stop(self) -> None:
        """Remove our paths, for nobody is to find a door that is about to close."""
        for path in self.paths:
            path.unlink()
        self.on_stop()


def _run(
    bound: _Bound,
    apps: "Mapping[str, App]",
    common: _Common,
    background: "Sequence[Callable[[], Coroutine[Any, Any, None]]]",
) -> int:
    """Serve the applications until a signal; return how many connections were cut off."""
    from attestkit.serve import listeners  # uvicorn: for those who serve, not for all who import

    served = [
        listeners.Listener(
            apps[name],
            sock,
            common.limits,
            name,
            common.stats.of(name),
            common.access_log,
            handed_over=name in bound.handed_over,
        )
        for name, sock in bound.sockets.items()
    ]
    return listeners.run(served, lambda: bound.on_ready(bound.ready), bound.stop, background)


def _refuse_what_cannot_be(
    attester: "Attester | None", places: Places, verifier: "Verifier | None"
) -> None:
    from attestkit.errors import UsageError

    agent = places.dstack or places.tappd or places.http or places.dev_http or places.pccs
    if not (agent or places.verifier):
        raise UsageError("every listener is off: there is nothing to serve")
    if agent and attester is None:
        raise UsageError("an agent's listeners need an attester")
    if places.verifier and verifier is None:
        raise UsageError("the verifier service needs a Verifier")
    if places.dev_http and not (attester and attester.simulated):
        raise UsageError("keys are given out over TCP by the simulator only")


def _guest(  # noqa: PLR0913, PLR0917 - what serve() was given, but for the places
    attester: "Attester",
    app_compose: "AppCompose | None",
    app_keys: "AppKeys | None",
    vm_config: str | None,
    ident: str | None,
    data_disks: Sequence[str],
    docker: str | None,
    common: _Common,
) -> "Guest":
    import os
    import time

    from attestkit.errors import UnsupportedError, UsageError
    from attestkit.serve.containers import DOCKER
    from attestkit.serve.guest import Guest, Release

    try:
        app_compose = app_compose or attester.app_compose
    except UnsupportedError as error:
        raise UsageError(f"a server must know its app, by an app-compose file: {error}") from error
    if app_keys is None and attester.host is not None:
        with suppress(UnsupportedError):  # the methods that need them say so
            app_keys = attester.host.app_keys
    vm_config = attester.vm_config if vm_config is None else vm_config
    return Guest(
        attester,
        app_compose=app_compose,
        app_keys=app_keys,
        vm_config=vm_config,
        now=time.time,  # noqa: TID251 - here the clock is handed in
        random=os.urandom,
        release=None if ident is None else Release(ident=_honest(ident, attester)),
        data_disks=data_disks,
        stats=common.stats,
        limits=common.limits,
        docker=docker or DOCKER,
    )


def _honest(ident: str, attester: "Attester") -> str:
    """Return the name for the Server header, with the word that a simulator is never without."""
    if not attester.simulated or "simulator" in ident.lower():
        return ident
    return f"{ident} (attestkit simulator)"


def _listen(places: Places, handed_over: "Mapping[str, socket]", stack: ExitStack) -> _Bound:
    """Bind what was not handed over; what is bound is closed, and removed, with `stack`."""
    from attestkit.serve.address import Address
    from attestkit.serve.sockets import UnixListener, bind_tcp

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
    )
    for name, address in addresses:
        taken = handed_over.get(name)
        if taken is None and address is not None and not isinstance(address, Path):
            taken = bind_tcp(f"--{name.replace('_', '-')}", Address(*address))
        if taken is not None:
            sockets[name] = stack.enter_context(taken)
            where[name] = f"http://{Address(*taken.getsockname()[:2])}"
    return _Bound(Ready(where), sockets, handed_over.keys(), paths)


def _agent_apps(guest: "Guest", places: Places) -> "dict[str, App]":
    from attestkit.serve import apps

    of_simulator = {"pccs": apps.collateral_app(guest)} if places.pccs else {}
    return {
        **of_simulator,
        "dstack": apps.dstack_app(guest),
        "tappd": apps.tappd_app(guest),
        "http": apps.external_app(guest),
        "dev_http": apps.dev_app(guest),
    }


def _verifier_app(verifier: "Verifier", common: _Common, stack: ExitStack) -> "App":
    """Return the verifier service; its threads end with `stack`."""
    from concurrent.futures import ThreadPoolExecutor

    from attestkit.serve.verifier import WORKERS, VerifierApp

    executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="verifier")
    stack.callback(executor.shutdown, cancel_futures=True)
    return VerifierApp(
        verifier,
        executor,
        max_body=common.limits.verifier_body,
        traffic=common.stats.of("verifier"),
    )
