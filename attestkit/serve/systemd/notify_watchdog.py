"""What systemd, or whoever started us and listens at `$NOTIFY_SOCKET`, is told.

| when | what |
|---|---|
| every listener accepts | `READY=1`, then the ready line as `STATUS` |
| we stop | `STOPPING=1` |
| with --watchdog, as long as we answer | `WATCHDOG=1`, twice in `$WATCHDOG_USEC` |

What is said once may wait a second for a service manager that is busy. A sign of life waits for
nothing, because all our clients would wait with it; there will be another.

The watchdog asks like a stranger: a GET over a connection of its own to our external listener,
through kernel, event loop, HTTP and RPC. Without a 2xx nothing is sent, and after `$WATCHDOG_USEC`
the service manager starts another server. Two things are no reason for that:

* An external listener that is full. Strangers can fill it, and must not be able to end the agent of
  an app with that; so then dstack.sock is asked instead.
* A device that makes its thread wait. A quote may take half a minute, another process would wait
  for the same device, and what needs no device is still served.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Mapping, MutableMapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from attestkit.errors import UsageError

__all__ = ["ServiceManager"]

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
# What each listener answers without work; the first that is on is asked. A verifier's metrics are
# never served alone.
_PROBES: Final = {
    "http": "/prpc/Worker.Version",
    "dstack": "/Version",
    "tappd": "/prpc/Tappd.Version",
    "dev_http": "/Version",
    "verifier": "/health",
    "pccs": "/sgx/certification/v4/rootcacrl",
}
_SEND_SECONDS: Final = 1.0  # for which a service manager may be slow to take what is said once
_LEAST_INTERVAL: Final = 0.05  # seconds; no service manager means less
_logger = logging.getLogger("attestkit.serve")


class _SilentError(Exception):
    """We did not get the answer that we would have had to give."""


class _FullError(_SilentError):
    """We were turned away by a listener that has all the connections it takes."""


class ServiceManager:
    """Takes messages; without an address nobody does, and nothing happens.

    Args:
        address: A path, or an abstract name behind an `@`.
        watchdog_seconds: After which it expects a sign of life; None if it does not.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        self._address = address
        self._status = ""
        self.watchdog_seconds: float | None = None if address is None else watchdog_seconds

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> "ServiceManager":
        """Return the one that the environment names, and take its variables out of there.

        Raises:
            UsageError: `$WATCHDOG_USEC` or `$WATCHDOG_PID` is no number.
        """
        address, interval, pid = (environ.pop(variable, None) for variable in _VARIABLES)
        seconds = None
        if interval and (not pid or _number("WATCHDOG_PID", pid) == os.getpid()):
            seconds = _number("WATCHDOG_USEC", interval) / 1e6
        return cls(address or None, seconds)

    def ready(self, status: str) -> None:
        """Say that every listener accepts."""
        self._send("READY=1")
        self._status = status
        self._send(f"STATUS={status}")

    def stopping(self) -> None:
        """Say that we are about to end."""
        self._send("STOPPING=1")

    def ended(self) -> None:
        """Say nothing: it sees that the process has ended."""

    @property
    def interval(self) -> float:
        """Seconds between two signs of life: half of what is expected, and no less than 0.05."""
        return max((self.watchdog_seconds or 0.0) / 2, _LEAST_INTERVAL)

    async def watch(self, places: Mapping[str, Path | str], interval: float | None = None) -> None:
        """Show signs of life for as long as we answer at one of `places`; never returns.

        Args:
            places: The path, or the URL, of each listener that is on.
            interval: Seconds between two; default `self.interval`.
        """
        interval = self.interval if interval is None else interval
        loop, well = asyncio.get_running_loop(), True
        while True:
            begin = loop.time()
            try:
                await asyncio.wait_for(_ask_any(places), interval)
            except (OSError, _SilentError, asyncio.TimeoutError) as error:
                reason = str(error) or f"no answer in {interval:g} s"
                _logger.warning("the watchdog is not told that we live: %s", reason)
                self._send(f"STATUS=unwell: {reason}", patience=0)
                well = False
            else:
                self._send("WATCHDOG=1", patience=0)
                if not well:
                    self._send(f"STATUS={self._status}", patience=0)
                well = True
            await asyncio.sleep(begin + interval - loop.time())

    def _send(self, message: str, patience: float = _SEND_SECONDS) -> None:
        if self._address is None:
            return
        where = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
                notifier.settimeout(patience)
                notifier.connect(where)
                notifier.send(message.encode("utf-8", "replace"))
        except OSError as error:
            reason = error.strerror or error
            _logger.warning("$NOTIFY_SOCKET %s: %s", self._address, reason)


def _number(variable: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text)):
        raise UsageError(f"${variable} is {text[:40]!r}: want a number above 0")
    return int(text)


async def _ask_any(places: Mapping[str, Path | str]) -> None:
    """Return if we answer where we are asked first; where that is full, at the next."""
    names = [name for name in _PROBES if name in places]
    try:
        await _ask(places[names[0]], _PROBES[names[0]])
    except _FullError as error:
        if len(names) == 1:
            raise
        _logger.warning("the watchdog asks %s: %s", names[1], error)
        await _ask(places[names[1]], _PROBES[names[1]])


async def _ask(place: Path | str, target: str) -> None:
    """Return if a GET at `place` is answered with a 2xx.

    Raises:
        _SilentError: It is not.
        OSError: Nobody could even be asked.
    """
    reader, writer = await _connect(place)
    try:
        writer.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\n" % target.encode("ascii"))
        writer.write(b"User-Agent: attestkit-watchdog\r\nConnection: close\r\n\r\n")
        answer = await reader.read(-1)
    except ConnectionError as error:
        raise _FullError(f"{place} closed the connection: {error}") from error
    finally:
        writer.close()
    status = answer[9:12]
    if not answer or status == b"503":
        raise _FullError(f"{place} has all the connections it takes")
    if status[:1] != b"2":
        raise _SilentError(f"{place}{target} answered {answer[:40]!r}")


async def _connect(place: Path | str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(place, Path):
        return await asyncio.open_unix_connection(place)
    url = urlsplit(place)
    return await asyncio.open_connection(_reachable(url.hostname or ""), url.port)


def _reachable(host: str) -> str:
    """Return where to ask what listens on all addresses: on the loopback one."""
    try:
        address = ip_address(host)
    except ValueError:  # a name
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"
