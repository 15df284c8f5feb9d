"""HTTP servers: the dstack guest agent API over an Attester, a verifier, and a simulated KMS.

`python -m attestkit.serve` is the program; `serve()` does the same for a program that has its own
Attester. No other part of attestkit needs this package.
"""

from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from attestkit._argument_checks import needs_extra
from attestkit.serve.endpoints import BoundAddresses, ListenAddresses

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.serve.app_factory import ServerOptions

__all__ = ["BackgroundTask", "serve"]

BackgroundTask: TypeAlias = Callable[[BoundAddresses], Coroutine[Any, Any, None]]
"""Coroutine function that runs beside the listeners; called with their bound addresses."""


def serve(
    attester: "Attester | None",
    addresses: ListenAddresses,
    options: "ServerOptions | None" = None,
    *,
    on_ready: Callable[[BoundAddresses], None] = lambda _: None,
    on_stop: Callable[[], None] = lambda: None,
    background: Sequence[BackgroundTask] = (),
) -> int:
    """Serve the guest agent API, the verifier service, or both, until a signal arrives.

    SIGTERM, SIGINT and SIGHUP shut down gracefully: no new connections, and a response to every
    pending request. A second SIGTERM or SIGINT ends the process at once.

    Args:
        attester: Produces the evidence; `serve` does not close it. None serves only
            `addresses.verifier`.
        addresses: Where to listen. `dev_http` requires a simulated TEE and a loopback address;
            `pccs` requires the simulator.
        options: App files, verifier, limits, logs and access control.
        on_ready: Called once with the bound addresses, when all listeners accept connections.
        on_stop: Called once, when shutdown begins.
        background: Coroutine functions that run beside the listeners until shutdown; each is called
            with the bound addresses.

    Returns:
        The number of connections closed because their requests exceeded `Limits.drain_seconds`.
        If it is not 0, the TEE device or its thread may still be busy; the server does not wait
        for either.

    Raises:
        UsageError: If an address or option is invalid or does not fit the others (such as
            the address `verifier` without a Verifier), all listeners are off, neither `options` nor
            the attester has the app's compose file, or a package of attestkit's extra `serve` is
            not installed.
        BackendBusyError: If another process listens on an address.
        ConfigError: If a socket cannot be created, or the address of the container engine or a file
            in the folder that the host shares with the guest is invalid.
    """
    with needs_extra("server", "serve"):
        import uvloop  # lazy, as uvicorn

        from attestkit.serve.app_factory import ServerOptions, build_server
        from attestkit.serve.http import server  # lazy: imports uvicorn

    options = options or ServerOptions()
    with ExitStack() as stack:
        bound = build_server(attester, addresses, options, stack)
        ready = bound.ready

        def stop() -> None:
            bound.unlink()
            on_stop()

        tasks = [partial(task, ready) for task in background]
        serving = server.run_in_loop(
            bound.listeners, lambda: on_ready(ready), stop, [*tasks, *bound.background]
        )
        cut_off = uvloop.run(serving)
        if cut_off:
            if options.access_log is not None:
                options.access_log.flush(patience=1.0)
            stack.pop_all()  # do not wait for a device that may never answer
        return cut_off
