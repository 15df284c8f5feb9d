"""Supervise verifier worker processes: start, restart with back-off, shut down gracefully.

The supervisor binds or inherits the socket, and starts N processes of this program, which share
the socket. There is one accept queue, and the next idle worker takes a connection. With
a queue for each worker (SO_REUSEPORT) the kernel would keep filling the queue of a hung worker, and
would reset the connections in that of a crashed one. With one queue the other workers continue,
and a crash costs only the worker's open connections.

Workers are spawned, not forked: they inherit no thread, lock or key.

| event | reaction |
|---|---|
| a worker exits before all are ready | the others are stopped, and the service fails |
| a worker exits later | a restart after 0.1 s; the delay doubles if it lasted less than 10 s |
| no heartbeat for `SILENT_SECONDS` and 10 s more | the worker is killed and restarted |
| SIGTERM, SIGINT, SIGHUP | no new connections; workers finish pending requests and exit |
| a second SIGTERM or SIGINT | the workers are killed, and the supervisor ends by that signal |
| a scrape of the metrics | the supervisor returns the sum of all workers |
| the supervisor is killed | the workers notice and shut down gracefully |
"""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field
from socket import AF_UNIX, SHUT_WR, SOCK_SEQPACKET, socket, socketpair
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit.errors import AttestKitError, BackendError, ConfigError, FormatError
from attestkit.serve.config.option_values import Address
from attestkit.serve.counters import MAX_ENCODED_STATS
from attestkit.serve.endpoints import BoundAddresses
from attestkit.serve.http.signals import until_signalled
from attestkit.serve.http.sockets import HANDSHAKE_SECONDS, ListeningSocket
from attestkit.serve.systemd.notify_watchdog import ServiceEnvironment
from attestkit.serve.verifier_service.metrics import MetricsAggregator

if TYPE_CHECKING:
    from attestkit.serve.http.server import Listener

SILENT_SECONDS: Final = 60.0
"""Time without a heartbeat after which a worker is killed; a heartbeat is sent every second.

10 s are added for the whole machine having been suspended.
"""

_SUSPEND_SECONDS: Final = 10.0
_FIRST_DELAY: Final = 0.1  # seconds before a worker is restarted
_MAX_DELAY: Final = 10.0
_STABLE_SECONDS: Final = 10.0  # seconds of running after which the back-off is reset
_GRACE: Final = 5.0  # seconds after the drain time for a worker to exit
# Program of a worker: this program, from this process's module search path.
_PROGRAM: Final = """\
import sys
sys.path[:] = {path!r}
from attestkit.serve.__main__ import main
sys.exit(main(sys.argv[1:], inherited=({listening}, {channel})))
"""
# Flags of the interpreter by their name in sys.flags; -P is new in Python 3.11.
_FLAGS: Final = {
    "isolated": "I",
    "ignore_environment": "E",
    "no_user_site": "s",
    "safe_path": "P",
    "no_site": "S",
    "dont_write_bytecode": "B",
    "optimize": "O",
    "bytes_warning": "b",
    "debug": "d",
    "verbose": "v",
}
_logger = logging.getLogger("attestkit.serve")


class _Worker(NamedTuple):
    """A running worker, and the supervisor's end of its control channel."""

    process: "subprocess.Popen[bytes]"
    channel: socket


@dataclass(eq=False)
class WorkerPool:
    """Worker processes that share one listening socket.

    Args:
        size: Number of workers.
        arguments: Command line of each worker.
        drain_seconds: Time limit of pending requests at shutdown.
        metrics: Receives the counters of the workers.
        endpoint: Listener that serves the metrics, closed at shutdown; None: it is off.
        timeout_seconds: Time without a heartbeat after which a worker is killed.
    """

    size: int
    arguments: Sequence[str]
    drain_seconds: float
    metrics: MetricsAggregator
    endpoint: "Listener | None" = None
    timeout_seconds: float = SILENT_SECONDS
    _listening: socket = field(init=False, repr=False)
    _service: ServiceEnvironment = field(init=False, repr=False)
    _on_ready: Callable[[BoundAddresses], None] = field(init=False, repr=False)
    # Slots whose worker accepts connections.
    _ready: set[int] = field(default_factory=set, init=False, repr=False)
    # By slot, from 1.
    _running: dict[int, _Worker] = field(default_factory=dict, init=False, repr=False)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)
    _all_ready: bool = field(default=False, init=False, repr=False)
    _failed: AttestKitError | None = field(default=None, init=False, repr=False)
    # Slots with a logged warning about their metrics.
    _unread: set[int] = field(default_factory=set, init=False, repr=False)

    def run(
        self,
        listening: socket,
        service: ServiceEnvironment,
        on_ready: Callable[[BoundAddresses], None],
    ) -> None:
        """Run the worker pool until a signal arrives.

        Args:
            listening: The listening socket of the workers; it is closed at shutdown.
            service: Notified when all workers are ready. Inherited sockets keep their queue.
            on_ready: Called before that notification.

        Raises:
            ConfigError: If a worker exits with code 1 during startup; its log has the reason.
            BackendError: If a worker exits otherwise, or cannot be started, during startup.
        """
        self._listening, self._service, self._on_ready = listening, service, on_ready
        with ExitStack() as stack:
            stack.enter_context(listening)
            if self.endpoint is not None:
                stack.enter_context(self.endpoint.socket)
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        """Run until a signal arrives or a worker fails to start."""
        with until_signalled(self._stopping.set, self._kill):
            async with AsyncExitStack() as stack:
                if self.endpoint is not None:
                    from attestkit.serve.http.server import beside  # lazy: imports uvicorn

                    serving = beside(self.endpoint, self._stopping.set)
                    await stack.enter_async_context(serving)
                await self._run()
        if self._failed is not None:
            raise self._failed

    async def _run(self) -> None:
        slots = [asyncio.create_task(self._supervise_slot(at + 1)) for at in range(self.size)]
        for task in slots:  # stop if a task fails, instead of leaving its slot empty
            task.add_done_callback(lambda _: self._stopping.set())
        await self._stopping.wait()
        self._service.manager.stopping()
        await self._stop(slots)

    # -- one slot ----------------------------------------------------------------------------------

    async def _supervise_slot(self, slot: int) -> None:
        """Keep worker number `slot` (from 1) running until shutdown."""
        loop, delay = asyncio.get_running_loop(), _FIRST_DELAY
        while not self._stopping.is_set():
            begin = loop.time()
            try:
                outcome = await self._run_worker(slot)
            except OSError as error:  # out of processes or descriptors
                outcome = f"could not be started: {error.strerror or error}"
                self._abort_startup(outcome, 3)
            if self._stopping.is_set():
                return
            self.metrics.restarts += 1
            delay = _FIRST_DELAY if loop.time() - begin >= _STABLE_SECONDS else delay
            _logger.warning("worker %d %s; another starts in %g s", slot, outcome, delay)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
            delay = min(2 * delay, _MAX_DELAY)

    async def _run_worker(self, slot: int) -> str:
        """Run a worker, number `slot`, until it exits; return how it ended, as text."""
        process, channel = self._running[slot] = _start(self.arguments, self._listening)
        try:
            await self._read_messages(slot, channel)
        finally:
            self._ready.discard(slot)
            self.metrics.workers = len(self._ready)
            self.metrics.retire(slot)
            self._unread.discard(slot)
            del self._running[slot]
            channel.close()
            process.kill()  # if it hangs; the exit code of an exiting process does not change
            code = process.wait()
        outcome = f"exited with code {code}" if code >= 0 else f"was killed by signal {-code}"
        self._abort_startup(f"(process {process.pid}) {outcome}", code)
        return f"(process {process.pid}) {outcome}"

    async def _read_messages(self, slot: int, channel: socket) -> None:
        """Handle messages of the worker `slot` until it closes its control channel or hangs."""
        while True:
            try:
                message = await self._receive(channel)
            except ConnectionError:  # the worker exited without reading a message of this process
                return
            if message is None:
                if not self._stopping.is_set():  # during shutdown the drain time limits it
                    _logger.warning("worker %d hangs; killing it", slot)
                    return
                continue
            if not message:
                return
            self._record_metrics(slot, message)
            self._ready.add(slot)
            self.metrics.workers = len(self._ready)
            self._announce_ready()

    def _record_metrics(self, slot: int, message: bytes) -> None:
        try:
            self.metrics.update(slot, message)
        except FormatError as error:  # after an upgrade of the files below a running service
            if slot not in self._unread:
                _logger.warning("worker %d sent malformed metrics: %s", slot, error)
            self._unread.add(slot)

    async def _receive(self, channel: socket) -> bytes | None:
        """Return a worker's next message, empty at its exit; None if it hangs.

        If the whole machine was suspended (a paused container, a VM snapshot), the time limit has
        passed when it resumes, although the worker could not send anything. Ten more seconds allow
        for that.
        """
        loop = asyncio.get_running_loop()
        message = asyncio.ensure_future(loop.sock_recv(channel, MAX_ENCODED_STATS))
        try:
            for seconds in (self.timeout_seconds, _SUSPEND_SECONDS):
                # Not wait_for(), which may lose a message that arrives at the timeout.
                await asyncio.wait({message}, timeout=seconds)
                if message.done():
                    return message.result()
            return None
        finally:
            message.cancel()

    def _announce_ready(self) -> None:
        """Report to systemd and the log that all workers are ready, but only the first time."""
        if self._all_ready or len(self._ready) < self.size or self._stopping.is_set():
            return
        self._all_ready = True
        sockets = {"verifier": self._listening}
        if self.endpoint is not None:
            sockets["verifier_metrics"] = self.endpoint.socket
        ready = BoundAddresses(
            {name: f"http://{Address(*at.getsockname()[:2])}" for name, at in sockets.items()}
        )
        self._on_ready(ready)
        self._service.manager.ready(str(ready))
        if self._service.watchdog:
            self._watching = asyncio.create_task(self._service.manager.watch(ready.addresses))

    def _abort_startup(self, outcome: str, code: int) -> None:
        """Stop with an error, because a worker exited with `code`; do nothing if all were ready.

        Before all workers are ready, starting another would not help. `outcome` says how the worker
        ended.
        """
        if self._all_ready or self._stopping.is_set():
            return
        text = f"worker {outcome} during startup; see its log"
        self._failed = (
            ConfigError(text, reason="wrong_value")
            if code == 1
            else BackendError(text, reason="io_error")
        )
        self._stopping.set()

    # -- shutdown ----------------------------------------------------------------------------------

    async def _stop(self, slots: "Sequence[asyncio.Task[None]]") -> None:
        """Refuse new connections, let workers finish their requests, and wait for them.

        `slots` are the tasks of `_supervise_slot`, whose exceptions are raised.
        """
        ours = "verifier" not in self._service.handed_over
        ListeningSocket(self._listening, ours).refuse_new()
        await asyncio.sleep(HANDSHAKE_SECONDS)  # let pending handshakes reach the queue
        for slot, worker in self._running.items():
            if slot in self._ready:
                worker.channel.shutdown(SHUT_WR)
            else:
                worker.process.terminate()
        _, late = await asyncio.wait(slots, timeout=self.drain_seconds + _GRACE)
        for slot, worker in self._running.items():
            _logger.warning("worker %d did not exit; killing it", slot)
            worker.process.kill()
        if late:
            await asyncio.wait(late)
        for task in slots:
            task.result()

    def _kill(self) -> None:
        """Kill all workers."""
        for worker in tuple(self._running.values()):
            worker.process.kill()


def _interpreter_flags() -> list[str]:
    """Return the command-line flags of this interpreter for another one.

    Without -I a worker would run code that its environment names, such as sitecustomize.
    """
    given = [(letter, int(getattr(sys.flags, name, 0))) for name, letter in _FLAGS.items()]
    flags = [f"-{letter * times}" for letter, times in given if times > 0]
    flags += [f"-W{option}" for option in sys.warnoptions]
    options: dict[str, str | bool] = getattr(sys, "_xoptions", {})  # documented for CPython
    flags += [f"-X{key}" if value is True else f"-X{key}={value}" for key, value in options.items()]
    return flags


def _start(arguments: Sequence[str], listening: socket) -> _Worker:
    """Start a worker with the listening socket and a control channel as its only descriptors.

    `arguments` is its command line. It leads its own session: signals of a terminal reach only the
    supervisor.

    Raises:
        OSError: If the process cannot be created.
    """
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    ours.settimeout(0)
    inherited = listening.fileno(), theirs.fileno()
    program = _PROGRAM.format(path=sys.path, listening=inherited[0], channel=inherited[1])
    with theirs:
        try:
            process = subprocess.Popen(  # noqa: S603 - this program
                [sys.executable, *_interpreter_flags(), "-c", program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=inherited,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
    return _Worker(process, ours)
