"""Control channel between a worker process and its supervisor: a SOCK_SEQPACKET socket pair.

Once it accepts connections, a worker sends its encoded counters every `HEARTBEAT_SECONDS` from its
event loop, and once more at exit. It shuts down gracefully when the supervisor closes its end for
writing, or exits. A worker closes its own end only by exiting, so the supervisor treats end of file
as the worker's exit.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from fcntl import F_SETFD, F_SETFL, FD_CLOEXEC, fcntl
from pathlib import Path
from typing import Final

from attestkit.serve.counters import Stats, encode_stats
from attestkit.serve.systemd.notify_watchdog import ServiceManager

HEARTBEAT_SECONDS: Final = 1.0
"""Interval of heartbeats."""


class ControlChannel(ServiceManager):
    """The worker's end of the control channel, in place of the service manager.

    Args:
        descriptor: Descriptor of the channel, which stays open until the process exits.
        stats: Counters to send.
    """

    def __init__(self, descriptor: int, stats: Stats) -> None:
        super().__init__(None)
        fcntl(descriptor, F_SETFD, FD_CLOEXEC)
        fcntl(descriptor, F_SETFL, os.O_NONBLOCK)
        self._descriptor = descriptor
        self._stats = stats

    def ended(self) -> None:
        """Send the final counters, after all responses."""
        self._send_counters()

    async def watch(
        self, addresses: Mapping[str, Path | str], interval: float | None = None
    ) -> None:
        """Send a heartbeat each `interval` seconds until the supervisor closes its end.

        Then send SIGTERM to this process. The default is `HEARTBEAT_SECONDS`. `addresses` are
        ignored: a service manager's `watch` probes them by HTTP, but here another worker might
        answer.
        """
        del addresses
        seconds = HEARTBEAT_SECONDS if interval is None else interval
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._descriptor, stop.set)
        try:
            while not stop.is_set():
                self._send_counters()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(stop.wait(), seconds)
        finally:
            loop.remove_reader(self._descriptor)
        signal.raise_signal(signal.SIGTERM)

    def _send_counters(self) -> None:
        with contextlib.suppress(OSError):  # closed or full; the next heartbeat follows
            os.write(self._descriptor, encode_stats(self._stats))
