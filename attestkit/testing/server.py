"""Server of a simulated TEE, in a thread of the test process; it starts on first use.

The TEEs of a session share one event loop. A TEE adds its listeners to it, and when closed removes
them and disconnects their clients.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.serve.endpoints import BoundAddresses, ListenAddresses
    from attestkit.serve.event_loop_thread import EventLoopThread

_FREE = ("127.0.0.1", 0)


class ServerLoop:
    """Event loop, in a thread, shared by the servers of a test session; created on first use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: EventLoopThread | None = None

    def thread(self) -> "EventLoopThread":
        """Return the thread of the loop, started by the first call."""
        from attestkit.serve.event_loop_thread import EventLoopThread  # lazy: loads the server

        with self._lock:
            if self._thread is None:
                self._thread = EventLoopThread()
            return self._thread

    def close(self) -> None:
        """Stop the thread, if it was started; call this after the TEEs are closed."""
        if self._thread is not None:
            self._thread.close()


class TeeServer:
    """Listeners of one TEE: those of the dstack agent, and the PCCS; each starts on first use.

    Args:
        attester: The TEE; the caller closes it.
        folder: Returns the folder for the sockets.
        loop: The event loop.
    """

    def __init__(self, attester: "Attester", folder: Callable[[], Path], loop: ServerLoop) -> None:
        self._attester = attester
        self._folder = folder
        self._loop = loop
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._agent: BoundAddresses | None = None
        self._pccs: BoundAddresses | None = None
        self._closed = False

    def agent(self, name: str) -> Path | str:
        """Return path or URL of a listener of the agent; the first call starts all listeners.

        Args:
            name: `dstack` or `tappd` (path of a socket), or `http` or `dev_http` (URL).

        Raises:
            UsageError: If the TEE is closed.
        """
        from attestkit.serve.endpoints import ListenAddresses  # lazy: loads the server

        with self._lock:
            self._check_open()
            if self._agent is None:
                folder = self._folder()
                sockets = folder / "dstack.sock", folder / "tappd.sock"
                self._agent = self._serve(ListenAddresses(*sockets, http=_FREE, dev_http=_FREE))
            return self._agent.addresses[name]

    def pccs(self) -> str:
        """Return the URL of the PCCS, which also serves the TEE's endorsements of GPUs.

        Raises:
            UsageError: If the TEE is closed.
        """
        from attestkit.serve.endpoints import ListenAddresses  # lazy: loads the server

        with self._lock:
            self._check_open()
            if self._pccs is None:
                self._pccs = self._serve(ListenAddresses(pccs=_FREE))
            return str(self._pccs.addresses["pccs"])

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("SimulatedTee: is closed; create a new one", reason="closed")

    def _serve(self, places: "ListenAddresses") -> "BoundAddresses":
        from attestkit.serve.app_factory import ServerOptions
        from attestkit.serve.background_server import BackgroundServer
        from attestkit.serve.config.limits import Limits

        # Not the container engine of this machine; a test may create a fake one there.
        docker = f"unix://{self._folder()}/docker.sock"
        options = ServerOptions(limits=Limits(drain_seconds=0), docker=docker)
        served = BackgroundServer(self._attester, places, options, thread=self._loop.thread())
        return self._stack.enter_context(served)

    def close(self) -> None:
        """Stop listening, disconnect clients, and remove the sockets."""
        with self._lock:
            self._closed = True
            self._stack.close()
