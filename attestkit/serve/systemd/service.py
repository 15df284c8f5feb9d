"""Serve under a service manager: with the sockets it hands over, telling it what it waits for."""

import logging
import os
from collections.abc import Callable, Collection, MutableMapping
from socket import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from attestkit.serve import serve
from attestkit.serve.endpoints import Places, Ready
from attestkit.serve.systemd.notify_watchdog import ServiceManager
from attestkit.serve.systemd.socket_activation import take_sockets

if TYPE_CHECKING:
    from attestkit.attester import Attester

__all__ = ["Supervisor"]

_logger = logging.getLogger("attestkit.serve")


class Supervisor(NamedTuple):
    """Who started us: what it gave, and whether it is shown that we live."""

    manager: ServiceManager
    handed_over: dict[str, socket]
    watchdog: bool

    @classmethod
    def from_environ(
        cls, environ: MutableMapping[str, str], on: Collection[str], *, watchdog: bool
    ) -> "Supervisor":
        """Take what was given out of the environment, for the listeners that are on.

        Raises:
            UsageError: It makes no sense.
        """
        manager = ServiceManager.from_environ(environ)
        expected = manager.watchdog_seconds is not None
        if expected and not watchdog:
            _logger.warning("$WATCHDOG_USEC is set, and only --watchdog makes us answer it")
        return cls(manager, take_sockets(environ, on), watchdog and expected)

    def serve(
        self,
        attester: "Attester | None",
        places: Places,
        on_ready: Callable[[Ready], None],
        **options: Any,
    ) -> None:
        """Serve as `attestkit.serve.serve` does; where requests had to be cut off, end there.

        A device that hangs would keep us at what is left to close, and none of that matters: the
        sockets are gone, and what is on disk stands a kill.
        """

        def ready(at: Ready) -> None:
            on_ready(at)
            self.manager.ready(str(at))

        cut_off = serve(
            attester,
            places,
            on_ready=ready,
            on_stop=self.manager.stopping,
            background=[lambda at: self.manager.watch(at.places)] if self.watchdog else [],
            handed_over=self.handed_over,
            **options,
        )
        self.manager.ended()
        if cut_off:
            logging.shutdown()
            os._exit(0)
