"""Control channel between a worker process and its supervisor.

A worker is this program with two inherited descriptors: 3 is the listening socket, as with systemd,
and `CHANNEL_FD` one end of a SOCK_SEQPACKET socket pair; the supervisor has the other.

| from | message | when |
|---|---|---|
| worker | `READY=1` | it accepts connections |
| worker | `WATCHDOG=1` | every `HEARTBEAT_SECONDS`, from the event loop |
| worker | `METRICS=` and its counters | with each heartbeat and at exit, if enabled |
| supervisor | `STOP=1`, or end of file | the worker must shut down gracefully |

A worker closes its end only by exiting, so the supervisor takes end of file for its exit.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from fcntl import F_SETFD, FD_CLOEXEC, fcntl
from pathlib import Path
from socket import socket
from typing import Final

from attestkit.errors import UsageError
from attestkit.serve.systemd.notify_watchdog import ServiceManager
from attestkit.serve.systemd.service import ServiceEnvironment
from attestkit.serve.systemd.socket_activation import take_sockets

__all__ = [
    "CHANNEL_FD",
    "HEARTBEAT",
    "HEARTBEAT_SECONDS",
    "METRICS",
    "READY",
    "STOP",
    "ControlChannel",
    "inherit_environment",
    "take_socket",
]

CHANNEL_FD: Final = 4
"""Descriptor of the control channel in a worker."""

HEARTBEAT_SECONDS: Final = 1.0
"""Interval of heartbeats."""

READY: Final = b"READY=1"
HEARTBEAT: Final = b"WATCHDOG=1"
METRICS: Final = b"METRICS="
STOP: Final = b"STOP=1"


class ControlChannel(ServiceManager):
    """The worker's end of the control channel, in place of the service manager."""

    def __init__(self, descriptor: int, get_metrics: Callable[[], bytes] | None = None) -> None:
        """Take over the control channel.

        Args:
            descriptor: Descriptor of the channel.
            get_metrics: Returns the encoded counters; None: they are not sent.

        Raises:
            UsageError: If the descriptor is not open.
        """
        super().__init__(None)
        try:
            fcntl(descriptor, F_SETFD, FD_CLOEXEC)
            os.set_blocking(descriptor, False)
        except OSError as error:
            raise UsageError(
                f"control channel: descriptor {descriptor}: {error.strerror}", reason="wrong_value"
            ) from error
        # No socket object: the interpreter would close it before the process exits.
        self._link = descriptor
        self._get_metrics = get_metrics

    def ready(self, status: str) -> None:
        """Notify the supervisor that the worker accepts connections."""
        del status
        self._write(READY)

    def stopping(self) -> None:
        """Do nothing: the supervisor initiated the shutdown, or will see the exit."""

    def ended(self) -> None:
        """Send the final counters, after all responses."""
        self._send_metrics()

    async def watch(
        self, addresses: Mapping[str, Path | str], interval: float | None = None
    ) -> None:
        """Send heartbeats until the supervisor sends STOP or exits; then raise SIGTERM.

        Unlike for a service manager, it sends no HTTP probe: any worker might answer it.
        """
        del addresses
        seconds = HEARTBEAT_SECONDS if interval is None else interval
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._link, stop.set)
        try:
            while not stop.is_set():
                self._write(HEARTBEAT)
                self._send_metrics()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(stop.wait(), seconds)
        finally:
            loop.remove_reader(self._link)
        signal.raise_signal(signal.SIGTERM)

    def _send_metrics(self) -> None:
        if self._get_metrics is not None:
            self._write(METRICS + self._get_metrics())

    def _write(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # closed or full; the next heartbeat follows
            os.write(self._link, message)


def take_socket() -> dict[str, socket]:
    """Return the listening socket inherited from the supervisor, by the name of its listener.

    Raises:
        UsageError: If descriptor 3 is not a listening TCP socket.
    """
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "verifier"}
    return take_sockets(environ, {"verifier"})


def inherit_environment(
    link: int, get_metrics: Callable[[], bytes] | None = None
) -> ServiceEnvironment:
    """Return the service environment of a worker: the supervisor and the inherited socket.

    Args:
        link: Descriptor of the control channel.
        get_metrics: Returns the encoded counters, if the supervisor exports metrics.

    Raises:
        UsageError: If they were not inherited.
    """
    return ServiceEnvironment(ControlChannel(link, get_metrics), take_socket(), watchdog=True)
