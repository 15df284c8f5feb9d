"""The dstack guest agent API on unix sockets and TCP, over an Attester.

`python -m attestkit.serve` is the program; `serve()` is the same for programs that bring their own
Attester. HTTP is a coat: everything below works without this package.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from socket import socket

    from attestkit.app_compose import AppCompose
    from attestkit.attester import Attester
    from attestkit.keys import AppKeys
    from attestkit.serve.guest import Guest
    from attestkit.serve.rpc import App
    from attestkit.verifier.pipeline import Verifier

__all__ = ["Places", "Ready", "serve"]


class Places(NamedTuple):
    """Where to listen; None is not at all. TCP places are (host, port), port 0 is any free one."""

    dstack: Path | None = None
    tappd: Path | None = None
    http: tuple[str, int] | None = None
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
    app_compose: "AppCompose | None" = None,
    app_keys: "AppKeys | None" = None,
    vm_config: str | None = None,
    verifier: "Verifier | None" = None,
    docker: str | None = None,
) -> None:
    """Serve the guest agent API, or the verifier service, or both, until SIGTERM or SIGINT.

    Args:
        attester: Makes the evidence; it stays open. None: only `places.verifier` is served.
        places: Where to listen. `dev_http` needs a simulated TEE and a loopback address, `pccs` the
            simulator.
        on_ready: Called once, when every listener accepts.
        app_compose: What the app was deployed from; default what `attester` knows.
        app_keys: The app's keys; default those that `attester` has; without any the key methods say
            so.
        vm_config: JSON text that is given back unchanged; default what `attester` knows.
        verifier: Judges what comes to `places.verifier`, by its policy too.
        docker: Where the container engine is; default `unix:///var/run/docker.sock`.

    Raises:
        UsageError: A place cannot be, there is none, or nobody says what the app is.
        BackendBusyError: Somebody else listens at one of the places.
        ConfigError: A socket cannot be made, a file of the host or the engine's address is wrong.
    """
    from attestkit.serve import listeners  # uvicorn: for those who serve, not for all who import

    _refuse_what_cannot_be(attester, places, verifier)
    with ExitStack() as stack:
        apps = {} if verifier is None else {"verifier": _verifier_app(verifier, stack)}
        if attester is not None:
            guest = _guest(attester, app_compose, app_keys, vm_config, docker)
            stack.callback(guest.close)
            apps.update(_agent_apps(guest, places))
        ready, sockets = _listen(places, stack)
        served = [listeners.Listener(apps[name], sock) for name, sock in sockets.items()]
        listeners.run(served, lambda: on_ready(ready))


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


def _guest(
    attester: "Attester",
    app_compose: "AppCompose | None",
    app_keys: "AppKeys | None",
    vm_config: str | None,
    docker: str | None,
) -> "Guest":
    import os
    import time

    from attestkit.errors import UnsupportedError, UsageError
    from attestkit.serve.containers import DOCKER
    from attestkit.serve.guest import Guest

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
        docker=docker or DOCKER,
    )


def _listen(places: Places, stack: ExitStack) -> "tuple[Ready, dict[str, socket]]":
    """Bind everything; what is bound is closed, and removed, with `stack`."""
    from attestkit.serve.settings import Address
    from attestkit.serve.sockets import UnixListener, bind_tcp

    sockets = {}
    where: dict[str, Path | str] = {}
    for name, path in (("dstack", places.dstack), ("tappd", places.tappd)):
        if path is not None:
            listener = UnixListener(path.absolute(), places.socket_mode, places.socket_group)
            stack.callback(listener.close)
            sockets[name], where[name] = listener.socket, listener.path
    addresses = (
        ("http", places.http),
        ("dev_http", places.dev_http),
        ("verifier", places.verifier),
        ("pccs", places.pccs),
    )
    for name, address in addresses:
        if address is not None:
            option = f"--{name.replace('_', '-')}"
            sockets[name] = stack.enter_context(bind_tcp(option, Address(*address)))
            where[name] = f"http://{Address(*sockets[name].getsockname()[:2])}"
    return Ready(where), sockets


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


def _verifier_app(verifier: "Verifier", stack: ExitStack) -> "App":
    """Return the verifier service; its threads end with `stack`."""
    from concurrent.futures import ThreadPoolExecutor

    from attestkit.serve.verifier import WORKERS, VerifierApp

    executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="verifier")
    stack.callback(executor.shutdown, cancel_futures=True)
    return VerifierApp(verifier, executor)
