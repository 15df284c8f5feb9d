"""The dstack guest agent API on unix sockets and TCP, over an Attester.

`python -m attestkit.serve` is the program; `serve()` is the same for programs that bring their own
Attester. HTTP is a coat: everything below works without this package.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from attestkit.serve.endpoints import Places, Ready
from attestkit.serve.machine_info import DATA_DISKS

if TYPE_CHECKING:
    from socket import socket

    from attestkit.attester import Attester
    from attestkit.dstack.app_compose import AppCompose
    from attestkit.keys import AppKeys
    from attestkit.serve.app_factory import Wired
    from attestkit.serve.config.limits import Limits
    from attestkit.serve.counters import Stats
    from attestkit.serve.server_log.access_log import AccessLog
    from attestkit.verifier.ear.result_token import EarKey
    from attestkit.verifier.pipeline import Verifier

__all__ = ["serve"]


def serve(
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
    ear_key: "EarKey | None" = None,
    stats: "Stats | None" = None,
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
        ear_key: Signs the verifier service's verdicts for who asks for that; None: nobody gets one.
        stats: Counts all of it, for who wants to look.

    Returns:
        How many connections were cut off, because their requests outlasted `Limits.drain_seconds`.
        Where there are any the device, or its thread, may still be at work, and is not waited for.

    Raises:
        UsageError: A place cannot be, there is none, or nobody says what the app is.
        BackendBusyError: Somebody else listens at one of the places.
        ConfigError: A socket cannot be made, a file of the host or the engine's address is wrong.
    """
    from attestkit.serve.app_factory import Options, wire

    options = Options(
        handed_over or {},
        app_compose,
        app_keys,
        vm_config,
        verifier,
        ident,
        data_disks,
        limits,
        access_log,
        docker,
        ear_key,
        stats,
    )
    with ExitStack() as stack:
        return _run(wire(attester, places, options, stack), stack, on_ready, on_stop, background)


def _run(
    wired: "Wired",
    stack: ExitStack,
    on_ready: Callable[[Ready], None],
    on_stop: Callable[[], None],
    background: "Sequence[Callable[[Ready], Coroutine[Any, Any, None]]]",
) -> int:
    """Serve until a signal; return how many connections were cut off."""
    from attestkit.serve.http import server  # uvicorn: for those who serve, not for all who import

    def stop() -> None:
        wired.unlink()
        on_stop()

    ready = wired.ready
    works = [partial(work, ready) for work in background]
    cut_off = server.run(wired.listeners, lambda: on_ready(ready), stop, works)
    if cut_off:
        wired.flush()
        stack.pop_all()  # what their requests wait for may take for ever
    return cut_off
