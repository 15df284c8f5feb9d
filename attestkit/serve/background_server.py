"""Server in a thread of another program, such as a test.

    with BackgroundServer(attester, ListenAddresses(dstack=folder / "dstack.sock")) as ready:
        client = DstackClient(str(ready.addresses["dstack"]))

Server and program use the same attester: events that the program emits are in quotes of the server,
and vice versa.
"""

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from attestkit.serve.app_factory import ServerOptions, build_server
from attestkit.serve.config.limits import Limits
from attestkit.serve.endpoints import BoundAddresses, ListenAddresses
from attestkit.serve.event_loop_thread import EventLoopThread, start_listeners, stop_listeners

if TYPE_CHECKING:
    from attestkit.attester import Attester

_AT_ONCE: Final = Limits(drain_seconds=0)


@dataclass(eq=False)
class BackgroundServer:
    """Context manager that serves an attester's guest agent API in a thread.

    Args:
        attester: Produces the evidence; it stays open, and the program may use it.
        addresses: As for `attestkit.serve.serve`.
        options: Other options of `serve`. By default, connections are closed at once on exit;
            `Limits.drain_seconds` gives pending requests time.
        thread: Thread with the event loop, which stays open; None: a new one, ended on exit.
    """

    attester: "Attester"
    addresses: ListenAddresses
    options: ServerOptions | None = field(default=None, repr=False)  # may hold the app's keys
    thread: EventLoopThread | None = field(default=None, kw_only=True)
    _process: int = field(default_factory=os.getpid, init=False, repr=False)
    _stack: ExitStack = field(default_factory=ExitStack, init=False, repr=False)

    def __enter__(self) -> BoundAddresses:
        """Serve; return the bound addresses when all listeners accept connections.

        Raises:
            UsageError: If an address or option is invalid or does not fit the others, all listeners
                are off, neither `options` nor the attester has the app's compose file, `thread` is
                closed, or a package of attestkit's extra `serve` is not installed.
            BackendBusyError: If another process listens on an address.
            ConfigError: If a socket cannot be created, or the address of the container engine or a
                file in the folder that the host shares with the guest is invalid.
        """
        with ExitStack() as stack:
            thread = self.thread or stack.enter_context(EventLoopThread())
            options = self.options or ServerOptions(limits=_AT_ONCE)
            bound = build_server(self.attester, self.addresses, options, stack)
            task = thread.run(
                lambda: start_listeners(bound.listeners, bound.unlink, bound.background)
            )
            stack.callback(thread.run, lambda: stop_listeners(task))
            self._process, self._stack = os.getpid(), stack.pop_all()
        return bound.ready

    def __exit__(self, *_: object) -> None:
        if self._process == os.getpid():  # else a fork: the server belongs to the parent
            self._stack.close()
