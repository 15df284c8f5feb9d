"""A process of a verifier service, and what it and its foreman tell each other (see supervisor).

The ordinary program, with two descriptors: 3 is the listening socket, as of systemd; `LINK` is a
pair of sockets (SOCK_SEQPACKET) whose other end the foreman has.

| from | message | when |
|---|---|---|
| the process | `READY=1` | it accepts |
| the process | `WATCHDOG=1` | every `SIGN_SECONDS`, from the event loop |
| the process | `COUNTS=` and its counts | if asked for: then, and at its end |
| the foreman | `STOP=1`, or the end of the link | the process is to stop in good order |

Our end is closed by the end of the process alone, so to the foreman that is its death.
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
from attestkit.serve.systemd.service import Supervisor
from attestkit.serve.systemd.socket_activation import take_sockets

__all__ = [
    "ALIVE",
    "COUNTS",
    "LINK",
    "READY",
    "SIGN_SECONDS",
    "STOP",
    "Link",
    "take_socket",
    "under_foreman",
]

LINK: Final = 4
"""The descriptor of the link in a process."""

SIGN_SECONDS: Final = 1.0
"""Between two signs of life."""

READY: Final = b"READY=1"
ALIVE: Final = b"WATCHDOG=1"
COUNTS: Final = b"COUNTS="
STOP: Final = b"STOP=1"


class Link(ServiceManager):
    """Stands for the service manager in a process: the foreman is told, and tells when to stop."""

    def __init__(self, descriptor: int, counted: Callable[[], bytes] | None = None) -> None:
        """Take the link.

        Args:
            descriptor: Of the link; it is ours from now on.
            counted: Returns what is sent behind `COUNTS=`; None: nothing is.

        Raises:
            UsageError: The descriptor is not open.
        """
        super().__init__(None)
        try:
            fcntl(descriptor, F_SETFD, FD_CLOEXEC)
            os.set_blocking(descriptor, False)
        except OSError as error:
            raise UsageError(f"descriptor {descriptor} is no link: {error.strerror}") from error
        # Not a socket object, which would be closed when Python ends, before the process does.
        self._link = descriptor
        self._counted = counted

    def ready(self, status: str) -> None:
        """Say that we accept; where, the foreman knows."""
        del status
        self._tell(READY)

    def stopping(self) -> None:
        """Say nothing: the foreman has said so, or sees it."""

    def ended(self) -> None:
        """Say what was counted once more: everybody has been answered since."""
        self._count()

    async def watch(self, places: Mapping[str, Path | str], interval: float | None = None) -> None:
        """Show signs of life until the foreman says to stop, or is gone; then stop, by SIGTERM.

        Nobody is asked over HTTP: any process of the service might answer.
        """
        del places
        seconds = SIGN_SECONDS if interval is None else interval
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._link, told.set)
        try:
            while not told.is_set():
                self._tell(ALIVE)
                self._count()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(told.wait(), seconds)
        finally:
            loop.remove_reader(self._link)
        signal.raise_signal(signal.SIGTERM)

    def _count(self) -> None:
        if self._counted is not None:
            self._tell(COUNTS + self._counted())

    def _tell(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # it is gone, or slow: the next sign will do
            os.write(self._link, message)


def take_socket() -> dict[str, socket]:
    """Return the listening socket that the foreman handed over, by the name of its listener.

    Raises:
        UsageError: Descriptor 3 is no TCP socket that listens.
    """
    given = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "verifier"}
    return take_sockets(given, {"verifier"})


def under_foreman(link: int, counted: Callable[[], bytes] | None = None) -> Supervisor:
    """Take what a foreman gave to one of its processes.

    Args:
        link: The descriptor to tell it by.
        counted: Returns what the process has counted, for a foreman that shows it.

    Raises:
        UsageError: Nobody gave it.
    """
    return Supervisor(Link(link, counted), take_socket(), watchdog=True)
