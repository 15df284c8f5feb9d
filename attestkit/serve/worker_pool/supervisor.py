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
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from fcntl import F_DUPFD_CLOEXEC, fcntl
from functools import partial
from socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair
from typing import Final, NamedTuple

from attestkit.errors import AttestKitError, BackendError, ConfigError, FormatError
from attestkit.serve.config.option_values import Address
from attestkit.serve.endpoints import BoundAddresses
from attestkit.serve.http.graceful_shutdown import HANDSHAKE_SECONDS, ListeningSocket
from attestkit.serve.http.signals import until_signalled
from attestkit.serve.systemd.service import ServiceEnvironment
from attestkit.serve.worker_pool.control_channel import CHANNEL_FD, HEARTBEAT, METRICS, READY, STOP
from attestkit.serve.worker_pool.metrics_aggregation import LONGEST, MetricsAggregator
from attestkit.serve.worker_pool.metrics_endpoint import MetricsEndpoint, serve_metrics

__all__ = ["SILENT_SECONDS", "WorkerPool", "run_pool"]

SILENT_SECONDS: Final = 60.0
"""Time without a heartbeat after which a worker is killed; a heartbeat is sent every second.

10 s are added for the whole machine having been suspended.
"""

_LONGEST: Final = len(METRICS) + LONGEST  # bytes of a worker's message
_SUSPEND_SECONDS: Final = 10.0
_FIRST_DELAY: Final = 0.1  # seconds before a worker is restarted
_MAX_DELAY: Final = 10.0
_STABLE_SECONDS: Final = 10.0  # seconds of running after which the back-off is reset
_GRACE: Final = 5.0  # seconds after the drain time for a worker to exit
_FIRST_FREE_FD: Final = 10  # descriptors from here on do not collide with those of a new worker
_SOCKET_FD: Final = 3  # SD_LISTEN_FDS_START
# Program of a worker: this program, from this process's module search path.
_PROGRAM: Final = """\
import sys
sys.path[:] = {path!r}
from attestkit.serve.__main__ import main
sys.exit(main(sys.argv[1:], link={link}))
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


class WorkerPool(NamedTuple):
    """Size, command line and time limits of the workers.

    `metrics` is the endpoint of their metrics, if it is on.
    """

    size: int
    arguments: Sequence[str]
    drain_seconds: float
    timeout_seconds: float = SILENT_SECONDS
    metrics: MetricsEndpoint | None = None


class _Worker(NamedTuple):
    """A running worker, and the supervisor's end of its control channel."""

    pid: int
    link: socket


def run_pool(
    pool: WorkerPool,
    listening: socket,
    service: ServiceEnvironment,
    on_ready: Callable[[BoundAddresses], None],
) -> None:
    """Run the worker pool until a signal arrives.

    Args:
        pool: The workers to run.
        listening: Their listening socket. It is closed at the end, as is the metrics socket.
        service: Notified when all workers are ready. Inherited sockets keep their queue.
        on_ready: Called before that notification.

    Raises:
        ConfigError: If a worker exits with code 1 during startup; its log has the reason.
        BackendError: If a worker exits otherwise during startup.
    """
    with ExitStack() as stack:
        stack.enter_context(listening)
        if pool.metrics is not None:
            stack.enter_context(pool.metrics.socket)
        asyncio.run(_PoolSupervisor(pool, listening, service, on_ready).run())


class _PoolSupervisor:
    def __init__(
        self,
        pool: WorkerPool,
        listening: socket,
        service: ServiceEnvironment,
        on_ready: Callable[[BoundAddresses], None],
    ) -> None:
        self._pool = pool
        self._listening = listening
        self._service = service
        self._on_ready = on_ready
        self._ready: set[int] = set()  # slots whose worker accepts connections
        self._running: dict[int, _Worker] = {}  # by slot, from 1
        self._stopping = asyncio.Event()
        self._all_ready = False
        self._failed: AttestKitError | None = None
        self._metrics = MetricsAggregator()
        self._unread: set[int] = set()  # slots with a logged warning about their metrics

    async def run(self) -> None:
        """Run until a signal arrives or a worker fails to start."""
        with until_signalled(self._stopping.set, self._kill):
            async with serve_metrics(self._pool.metrics, self._metrics, self._stopping.set):
                await self._run()
        if self._failed is not None:
            raise self._failed

    async def _run(self) -> None:
        slots = [asyncio.create_task(self._supervise_slot(at + 1)) for at in range(self._pool.size)]
        for task in slots:  # stop if a task fails, instead of leaving its slot empty
            task.add_done_callback(lambda _: self._stopping.set())
        await self._stopping.wait()
        self._service.manager.stopping()
        await self._stop(slots)

    # -- one slot ----------------------------------------------------------------------------------

    async def _supervise_slot(self, slot: int) -> None:
        """Keep a worker running in a slot until shutdown."""
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
            self._metrics.restarts += 1
            delay = _FIRST_DELAY if loop.time() - begin >= _STABLE_SECONDS else delay
            _logger.warning("worker %d %s; another starts in %g s", slot, outcome, delay)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay)
            delay = min(2 * delay, _MAX_DELAY)

    async def _run_worker(self, slot: int) -> str:
        """Run a worker until it exits; return how it ended."""
        process = _start(self._pool.arguments, self._listening)
        self._running[slot] = process
        try:
            await self._read_messages(slot, process)
        finally:
            self._ready.discard(slot)
            self._metrics.workers = len(self._ready)
            self._metrics.retire(slot)
            self._unread.discard(slot)
            del self._running[slot]
            process.link.close()
            code = _reap(process.pid)
        outcome = f"exited with code {code}" if code >= 0 else f"was killed by signal {-code}"
        self._abort_startup(f"(process {process.pid}) {outcome}", code)
        return f"(process {process.pid}) {outcome}"

    async def _read_messages(self, slot: int, process: _Worker) -> None:
        """Handle a worker's messages until it closes its control channel or hangs."""
        while True:
            try:
                message = await self._receive(process.link)
            except ConnectionError:  # it exited with an unread message of ours
                return
            if message is None:
                if not self._stopping.is_set():  # during shutdown the drain time limits it
                    _logger.warning("worker %d hangs; killing it", slot)
                    return
                continue
            if not message:
                return
            if message == READY:
                self._ready.add(slot)
                self._metrics.workers = len(self._ready)
                self._announce_ready()
            elif message.startswith(METRICS):
                self._record_metrics(slot, message)
            elif message != HEARTBEAT:
                _logger.debug("worker %d sent %s", slot, ascii(message))

    def _record_metrics(self, slot: int, message: bytes) -> None:
        try:
            self._metrics.update(slot, message[len(METRICS) :])
        except FormatError as error:  # after an upgrade of the files below a running service
            if slot not in self._unread:
                _logger.warning("worker %d sent malformed metrics: %s", slot, error)
            self._unread.add(slot)

    async def _receive(self, link: socket) -> bytes | None:
        """Return a worker's next message, empty at its exit; None if it hangs.

        If the whole machine was suspended (a paused container, a VM snapshot), the time limit has
        passed when it resumes, although the worker could not send anything. Ten more seconds allow
        for that.
        """
        message = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(link, _LONGEST))
        try:
            for seconds in (self._pool.timeout_seconds, _SUSPEND_SECONDS):
                # Not wait_for(), which may lose a message that arrives at the timeout.
                await asyncio.wait({message}, timeout=seconds)
                if message.done():
                    return message.result()
            return None
        finally:
            message.cancel()

    def _announce_ready(self) -> None:
        """Announce once that all workers are ready."""
        if self._all_ready or len(self._ready) < self._pool.size or self._stopping.is_set():
            return
        self._all_ready = True
        sockets = {"verifier": self._listening}
        if self._pool.metrics is not None:
            sockets["verifier_metrics"] = self._pool.metrics.socket
        ready = BoundAddresses(
            {name: f"http://{Address(*at.getsockname()[:2])}" for name, at in sockets.items()}
        )
        self._on_ready(ready)
        self._service.manager.ready(str(ready))
        if self._service.watchdog:
            self._watching = asyncio.create_task(self._service.manager.watch(ready.addresses))

    def _abort_startup(self, outcome: str, code: int) -> None:
        """Fail startup if a worker exits before all are ready; a restart would not help."""
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
        """Refuse new connections, let workers finish their requests, and wait for them."""
        ours = "verifier" not in self._service.handed_over
        ListeningSocket(self._listening, ours).refuse_new()
        await asyncio.sleep(HANDSHAKE_SECONDS)  # let pending handshakes reach the queue
        for slot, process in self._running.items():
            if slot in self._ready:
                with suppress(OSError):  # it has just exited
                    process.link.send(STOP)
            else:
                os.kill(process.pid, signal.SIGTERM)
        _, late = await asyncio.wait(slots, timeout=self._pool.drain_seconds + _GRACE)
        for slot, process in self._running.items():
            _logger.warning("worker %d did not exit; killing it", slot)
            os.kill(process.pid, signal.SIGKILL)
        if late:
            await asyncio.wait(late)
        for task in slots:
            task.result()

    def _kill(self) -> None:
        """Kill all workers; their process ids are valid, because they are not reaped yet."""
        for process in tuple(self._running.values()):
            os.kill(process.pid, signal.SIGKILL)


def _reap(pid: int) -> int:
    """Return the exit code of a worker that closed its control channel or hangs.

    A worker closes its channel only by exiting, and SIGKILL does not change the exit code then.
    """
    os.kill(pid, signal.SIGKILL)  # not reaped, so the process id is still valid
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


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

    It leads its own process group: signals of a terminal reach only the supervisor.

    Raises:
        OSError: If the process cannot be created.
    """
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    ours.settimeout(0)
    with ExitStack() as stack:
        stack.callback(theirs.close)
        try:
            given = []
            for each in (listening, theirs):
                given.append(fcntl(each, F_DUPFD_CLOEXEC, _FIRST_FREE_FD))
                stack.callback(partial(os.close, given[-1]))
            program = _PROGRAM.format(path=sys.path, link=CHANNEL_FD)
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, *_interpreter_flags(), "-c", program, *arguments],
                dict(os.environ),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, given[0], _SOCKET_FD),
                    (os.POSIX_SPAWN_DUP2, given[1], CHANNEL_FD),
                ],
                setpgroup=0,
            )
        except BaseException:
            ours.close()
            raise
    return _Worker(pid, ours)
