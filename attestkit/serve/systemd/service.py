"""Serving under a service manager, or as a worker of a pool."""

import logging
import os
from collections.abc import Callable, Collection, MutableMapping
from socket import socket
from typing import TYPE_CHECKING, NamedTuple

from attestkit.serve import serve
from attestkit.serve.endpoints import BoundAddresses, ListenAddresses
from attestkit.serve.systemd.notify_watchdog import ServiceManager
from attestkit.serve.systemd.socket_activation import take_sockets

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.serve.app_factory import ServerOptions

_logger = logging.getLogger("attestkit.serve")


class ServiceEnvironment(NamedTuple):
    """Service manager (or supervisor), inherited sockets and watchdog of this process."""

    manager: ServiceManager
    handed_over: dict[str, socket]
    watchdog: bool

    @classmethod
    def from_environ(
        cls, environ: MutableMapping[str, str], on: Collection[str], *, watchdog: bool
    ) -> "ServiceEnvironment":
        """Take the service manager and the sockets of the listeners from the environment.

        Raises:
            UsageError: If its variables are invalid.
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

        Closing a hung device would block. An exit is safe: the sockets are removed, and the state
        on disk survives a kill.
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
