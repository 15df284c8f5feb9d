"""The server of a simulated TEE, in a thread of the program that tests; it starts at first use.

A run has one event loop at most. Each TEE puts its listeners there, and takes them off when it
ends: whoever is connected then is cut off, for the test is over.
"""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.serve.background_server import LoopThread
    from attestkit.serve.endpoints import Places, Ready

__all__ = ["ServerLoop", "TeeServer"]

_FREE = ("127.0.0.1", 0)


class ServerLoop:
    """The event loop of all servers of a run; there is none before the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None

    def thread(self) -> "LoopThread":
        """Return the thread that has the loop."""
        from attestkit.serve.background_server import LoopThread  # late: loads the server

        with self._lock:
            if self._thread is None:
                self._thread = LoopThread()
            return self._thread

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._thread is not None:
            self._thread.close()


class TeeServer:
    """The listeners of one TEE: the agent's from one moment, the PCCS from another.

    Args:
        attester: Makes the evidence; it stays the caller's.
        folder: Returns the folder for the sockets.
        loop: Where they are served.
    """

    def __init__(self, attester: "Attester", folder: Callable[[], Path], loop: ServerLoop) -> None:
        self._attester = attester
        self._folder = folder
        self._loop = loop
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._agent: Ready | None = None
        self._pccs: Ready | None = None
        self._closed = False

    def agent(self, name: str) -> Path | str:
        """Return where the agent's listener of that name is; all of them start together.

        Raises:
            UsageError: The TEE is closed.
        """
        from attestkit.serve.endpoints import Places  # late: loads the server

        with self._lock:
            self._check_open()
            if self._agent is None:
                folder = self._folder()
                sockets = folder / "dstack.sock", folder / "tappd.sock"
                self._agent = self._serve(Places(*sockets, http=_FREE, dev_http=_FREE))
            return self._agent.places[name]

    def pccs(self) -> str:
        """Return the URL of the PCCS.

        Raises:
            UsageError: The TEE is closed, or has no collateral.
        """
        from attestkit.serve.endpoints import Places  # late: loads the server

        with self._lock:
            self._check_open()
            if self._pccs is None:
                self._pccs = self._serve(Places(pccs=_FREE))
            return str(self._pccs.places["pccs"])

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this TEE is closed, and its server with it")

    def _serve(self, places: "Places") -> "Ready":
        from attestkit.serve.app_factory import Options
        from attestkit.serve.background_server import Served
        from attestkit.serve.config.limits import Limits

        # The engine of this machine is none of a test's business; one may put another there.
        docker = f"unix://{self._folder()}/docker.sock"
        options = Options(limits=Limits(drain_seconds=0), docker=docker)
        served = Served(self._attester, places, options, thread=self._loop.thread())
        return self._stack.enter_context(served)

    def close(self) -> None:
        """Stop listening, cut off who is connected, and remove the sockets."""
        with self._lock:
            self._closed = True
            self._stack.close()
