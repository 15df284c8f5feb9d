"""HTTP server of the dstack guest agent API, on unix sockets and TCP, over an Attester.

`python -m attestkit.serve` is the program; `serve()` does the same for a program that has its own
Attester. No other part of attestkit needs this package.
"""

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from attestkit.serve.endpoints import BoundAddresses, ListenAddresses
from attestkit.serve.machine_info import DATA_DISKS

if TYPE_CHECKING:
    from socket import socket

    from attestkit.attester import Attester
    from attestkit.dstack.app_compose import AppCompose
    from attestkit.keys import AppKeys
    from attestkit.serve.app_factory import BoundServer
    from attestkit.serve.config.limits import Limits
    from attestkit.serve.counters import Stats
    from attestkit.serve.server_log.access_log import AccessLog
    from attestkit.verifier.ear.result_token import EarKey
    from attestkit.verifier.pipeline import Verifier

__all__ = ["serve"]


def serve(
    attester: "Attester | None",
    addresses: ListenAddresses,
    *,
    on_ready: Callable[[BoundAddresses], None] = lambda _: None,
    on_stop: Callable[[], None] = lambda: None,
    background: "Sequence[Callable[[BoundAddresses], Coroutine[Any, Any, None]]]" = (),
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
    """Serve the guest agent API, the verifier service, or both, until a signal arrives.

    SIGTERM, SIGINT and SIGHUP shut down gracefully: no new connections, and a response to every
    pending request. A second SIGTERM or SIGINT ends the process at once.

    Args:
        attester: Produces the evidence; it stays open. None serves only `addresses.verifier`.
        addresses: Where to listen. `dev_http` needs a simulated TEE and a loopback address, `pccs`
            the simulator.
        on_ready: Called once, when all listeners accept connections.
        on_stop: Called once, when shutdown begins.
        background: Coroutine functions that run beside the listeners until shutdown.
        handed_over: Listening sockets by the name of their listener. They replace what `addresses`
            says, keep their path and mode, and are closed at the end.
        app_compose: The app's compose file; default the attester's.
        app_keys: The app's keys; default the attester's. Without keys, key methods fail.
        vm_config: JSON text that is returned unchanged; default the attester's.
        verifier: Verifies the requests to `addresses.verifier`, including by its policy.
        ident: Server header, printable ASCII; default attestkit's name. It always names a
            simulator as such.
        data_disks: Mount points of the file systems in the system information.
        limits: Limits of every listener.
        access_log: Records every request; flushed at the end.
        docker: Address of the container engine; default `unix:///var/run/docker.sock`.
        ear_key: Signs attestation results on request; None: no signed results.
        stats: Counters to update.

    Returns:
        The number of connections closed because their requests exceeded `Limits.drain_seconds`.
        If it is not 0, the device or its thread may still be busy; the server does not wait for it.

    Raises:
        UsageError: If an address is invalid, all listeners are off, or the app is unknown.
        BackendBusyError: If another process listens on an address.
        ConfigError: If a socket cannot be created, or a host file or the engine's address is
            invalid.
    """
    from attestkit.serve.app_factory import ServerOptions, build_server

    options = ServerOptions(
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
        return _run(
            build_server(attester, addresses, options, stack), stack, on_ready, on_stop, background
        )


def _run(
    bound: "BoundServer",
    stack: ExitStack,
    on_ready: Callable[[BoundAddresses], None],
    on_stop: Callable[[], None],
    background: "Sequence[Callable[[BoundAddresses], Coroutine[Any, Any, None]]]",
) -> int:
    """Serve until a signal; return the number of connections that were closed early."""
    from attestkit.serve.http import server  # lazy: imports uvicorn

    def stop() -> None:
        bound.unlink()
        on_stop()

    ready = bound.ready
    tasks = [partial(task, ready) for task in background]
    cut_off = server.run(bound.listeners, lambda: on_ready(ready), stop, tasks)
    if cut_off:
        bound.flush()
        stack.pop_all()  # do not wait for a device that may never answer
    return cut_off
