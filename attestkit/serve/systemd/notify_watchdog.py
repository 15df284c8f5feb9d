"""Notification of the service manager (sd_notify protocol), watchdog, and serving under both.

| event | message to `$NOTIFY_SOCKET` |
|---|---|
| all listeners accept connections | `READY=1`, then the ready line as `STATUS` |
| shutdown | `STOPPING=1` |
| with --watchdog, while the server responds | `WATCHDOG=1`, twice in `$WATCHDOG_USEC` |

State changes may wait a second for a busy service manager. A watchdog message does not wait,
because all clients would have to wait too; another one follows.

The watchdog probes the server like a client: a GET to the external listener over a new connection,
through kernel, event loop, HTTP and RPC. Without its response nothing is sent, and after
`$WATCHDOG_USEC` the service manager restarts the server. Two conditions do not cause a restart:

* A full external listener. Untrusted clients can fill it, and must not be able to restart the
  agent; dstack.sock is probed then.
* A blocked device thread. A quote may take half a minute, a restarted server would wait for the
  same device, and everything else is still served.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Collection, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from attestkit.serve import serve
from attestkit.serve.endpoints import LIMITED_PREFIX, BoundAddresses, ListenAddresses
from attestkit.serve.systemd.socket_activation import read_number, take_sockets

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.serve.app_factory import ServerOptions

_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
# Path of each listener that needs no work; the first listener that is on is probed, and limited
# sockets come between these two. A verifier's metrics are never the only listener.
_PROBES: Final = {
    "http": "/prpc/Worker.Version",
    "dstack": "/Version",
    "tappd": "/prpc/Tappd.Version",
    "dev_http": "/Version",
}
_LATER_PROBES: Final = {"verifier": "/health", "pccs": "/sgx/certification/v4/rootcacrl"}
# Refusal of a listener that works: the external one may require a token of a client that is not on
# loopback, and a limited socket may not serve the method.
_TOKEN_MISSING: Final = b"401"
_METHOD_REFUSED: Final = b"403"
_SEND_SECONDS: Final = 1.0  # to wait for a busy service manager
_LEAST_INTERVAL: Final = 0.05  # seconds; no service manager uses less
_logger = logging.getLogger("attestkit.serve")


class _ProbeError(Exception):
    """The server did not respond correctly to a probe."""


class _ListenerFullError(_ProbeError):
    """The listener has reached its limit of connections."""


class ServiceManager:
    """Sender of notifications to a service manager; failures are logged, not raised.

    Args:
        address: Path of the service manager's socket, or `@` and an abstract name; None: nothing is
            sent.
        watchdog_seconds: Timeout of the service manager's watchdog; None without a watchdog.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        self._address = address
        self._status = ""
        self.watchdog_seconds: float | None = None if address is None else watchdog_seconds

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str]) -> "ServiceManager":
        """Return the service manager in the environment variables, and remove these.

        Without `$NOTIFY_SOCKET`, it sends nothing. `$WATCHDOG_USEC` is ignored if `$WATCHDOG_PID`
        is another process.

        Raises:
            UsageError: If `$WATCHDOG_USEC` or `$WATCHDOG_PID` is not a positive number, or too
                large.
        """
        address, interval, pid = (environ.pop(variable, None) for variable in _VARIABLES)
        seconds = None
        if interval and (
            not pid or read_number("WATCHDOG_PID", pid, 1 << 31, least=1) == os.getpid()
        ):
            seconds = read_number("WATCHDOG_USEC", interval, 1 << 63, least=1) / 1e6
        return cls(address or None, seconds)

    def ready(self, status: str) -> None:
        """Notify that all listeners accept connections; `status` is a text for people."""
        self._send("READY=1")
        self._status = status
        self._send(f"STATUS={status}")

    def stopping(self) -> None:
        """Notify of the shutdown."""
        self._send("STOPPING=1")

    def ended(self) -> None:
        """Do nothing: the service manager notices the exit of the process."""

    @property
    def interval(self) -> float:
        """Seconds between two watchdog messages: half the timeout, at least 0.05."""
        return max((self.watchdog_seconds or 0.0) / 2, _LEAST_INTERVAL)

    async def watch(
        self, addresses: Mapping[str, Path | str], interval: float | None = None
    ) -> None:
        """Send watchdog messages while the server responds to probes; never returns.

        Args:
            addresses: Path or URL of each listener.
            interval: Seconds between two messages; default `self.interval`.
        """
        interval = self.interval if interval is None else interval
        loop, well = asyncio.get_running_loop(), True
        while True:
            begin = loop.time()
            try:
                await asyncio.wait_for(_probe_any(addresses), interval)
            except (OSError, _ProbeError, asyncio.TimeoutError) as error:
                reason = str(error) or f"no response in {interval:g} s"
                _logger.warning("watchdog probe failed: %s", reason)
                self._send(f"STATUS=watchdog probe failed: {reason}", patience=0)
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


async def _probe_any(addresses: Mapping[str, Path | str]) -> None:
    """Probe the first listener that is on; if it has too many connections, the second one.

    `addresses` has the path or URL of each listener by name.
    """
    limited = [name for name in addresses if name.startswith(LIMITED_PREFIX)]
    names = [name for name in (*_PROBES, *limited, *_LATER_PROBES) if name in addresses]
    try:
        await _probe(names[0], addresses[names[0]])
    except _ListenerFullError as error:
        if len(names) == 1:
            raise
        _logger.warning("watchdog: probing the listener %s instead: %s", names[1], error)
        await _probe(names[1], addresses[names[1]])


async def _probe(name: str, address: Path | str) -> None:
    """Send a GET request to the listener `name` at `address` (path or URL); check the status.

    Raises:
        _ListenerFullError: If the listener has reached its limit of connections.
        _ProbeError: If the status does not show that the listener works.
        OSError: If the connection fails.
    """
    target = {**_PROBES, **_LATER_PROBES}.get(name, "/Version")
    reader, writer = await _connect(address)
    try:
        writer.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\n" % target.encode("ascii"))
        writer.write(b"User-Agent: attestkit-watchdog\r\nConnection: close\r\n\r\n")
        answer = await reader.read(-1)
    except ConnectionError as error:
        raise _ListenerFullError(f"{address} closed the connection: {error}") from error
    finally:
        writer.close()
    status = answer[9:12]
    if not answer or status == b"503":
        raise _ListenerFullError(f"{address} has reached its limit of connections")
    expected = {b"200"}
    if name == "http":
        expected.add(_TOKEN_MISSING)
    elif name.startswith(LIMITED_PREFIX):
        expected.add(_METHOD_REFUSED)
    if status not in expected:
        raise _ProbeError(f"{address}{target}: the response is not 200: {answer[:40]!r}")


async def _connect(address: Path | str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, Path):
        return await asyncio.open_unix_connection(address)
    url = urlsplit(address)  # the unspecified address connects to loopback
    return await asyncio.open_connection(url.hostname, url.port)


class ServiceEnvironment(NamedTuple):
    """Service manager (or supervisor), inherited sockets and watchdog of this process."""

    manager: ServiceManager  # receives state and watchdog messages
    handed_over: dict[str, socket.socket]  # inherited sockets by name of the listener
    watchdog: bool  # whether watchdog messages are sent

    @classmethod
    def from_environ(
        cls, environ: MutableMapping[str, str], on: Collection[str], *, watchdog: bool
    ) -> "ServiceEnvironment":
        """Take service manager and inherited sockets from the environment; remove their variables.

        Args:
            environ: Environment variables.
            on: Names of the listeners that are on.
            watchdog: Whether to serve the watchdog that the environment requests; otherwise that is
                logged.

        Raises:
            UsageError: If a variable is invalid, or an inherited socket does not fit its listener.
        """
        manager = ServiceManager.from_environ(environ)
        expected = manager.watchdog_seconds is not None
        if expected and not watchdog:
            _logger.warning("$WATCHDOG_USEC is ignored without --watchdog")
        return cls(manager, take_sockets(environ, on), watchdog and expected)

    def serve(
        self,
        attester: "Attester | None",
        addresses: ListenAddresses,
        options: "ServerOptions",
        on_ready: Callable[[BoundAddresses], None],
    ) -> None:
        """Serve like `attestkit.serve.serve`; exit the process if requests had to be aborted.

        Without `attester` (None), only the verifier is served. `on_ready` is called before the
        service manager is notified. Closing a hung device would block. An exit (code 0) is safe:
        the sockets are removed, and the state on disk survives a kill.

        Raises:
            AttestKitError: As for `attestkit.serve.serve`.
        """

        def ready(at: BoundAddresses) -> None:
            on_ready(at)
            self.manager.ready(str(at))

        cut_off = serve(
            attester,
            addresses,
            options._replace(handed_over=self.handed_over),
            on_ready=ready,
            on_stop=self.manager.stopping,
            background=[lambda at: self.manager.watch(at.addresses)] if self.watchdog else [],
        )
        self.manager.ended()
        if cut_off:
            logging.shutdown()
            os._exit(0)
