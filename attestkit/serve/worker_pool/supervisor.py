"""One verifier service of several processes: start them, start them again, stop them in good order.

The foreman binds the socket, or has it handed over, and starts N times the ordinary program, which
gets that very socket (see control_channel). So there is one queue of connections, and whoever is
free takes the next. With a queue for each process (SO_REUSEPORT) the kernel would go on to fill
that of a process that hangs, and would reset what waits in that of one that dies; from one queue
the others serve on, and a death costs the connections that were open to the dead one.

Processes are started anew, never forked: no thread, lock or key of the foreman's is theirs.

| what | then |
|---|---|
| one ends before all were ready | the others are stopped, and the service ends with an error |
| one ends later | another starts after 0.1 s, and twice as long each time it did not last 10 s |
| one gives no sign of life for `SILENT_SECONDS`, nor for ten seconds more | it is killed |
| SIGTERM, SIGINT, SIGHUP | nobody is let in any more; each answers whom it has, and ends |
| SIGTERM, SIGINT once more | all are killed, and the foreman ends by that signal |
| they are asked what they count | the foreman tells, for all |
| the foreman is killed | its processes see that, and stop in good order |
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

from attestkit.errors import AttestKitError, ConfigError, FormatError
from attestkit.serve.config.option_values import Address
from attestkit.serve.endpoints import Ready
from attestkit.serve.http.graceful_shutdown import HANDSHAKE_SECONDS, Door
from attestkit.serve.http.signals import until_signalled
from attestkit.serve.systemd.service import Supervisor
from attestkit.serve.worker_pool.control_channel import ALIVE, COUNTS, LINK, READY, STOP
from attestkit.serve.worker_pool.metrics_aggregation import LONGEST, Tally
from attestkit.serve.worker_pool.metrics_endpoint import Shown, showing

__all__ = ["SILENT_SECONDS", "Crew", "serve_by"]

SILENT_SECONDS: Final = 60.0
"""After which a process that shows no sign of life in 10 more is killed; one comes every second.

The 10 are for a pause of everything, the foreman too, which is no silence of the process.
"""

_LONGEST: Final = len(COUNTS) + LONGEST  # bytes of what a process says
_AWAKE_SECONDS: Final = 10.0
_FIRST_PAUSE: Final = 0.1  # seconds before a process that ended is replaced
_LONGEST_PAUSE: Final = 10.0
_LASTED: Final = 10.0  # seconds after which one counts as having lasted
_GRACE: Final = 5.0  # beyond the time to finish, for a process to end
_FREE: Final = 10  # descriptors from here on are in nobody's way while a process is started
_SOCKET: Final = 3  # SD_LISTEN_FDS_START
# What the child runs: our program, from where our modules are and not from where it is started.
_PROGRAM: Final = """\
import sys
sys.path[:] = {path!r}
from attestkit.serve.__main__ import main
sys.exit(main(sys.argv[1:], link={link}))
"""
# What the interpreter was told, by its name in sys.flags; -P is of Python 3.11.
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


class Crew(NamedTuple):
    """Who is to serve: how many, with which command line, and how long each may take to finish.

    `metrics` is where their counts are shown.
    """

    size: int
    arguments: Sequence[str]
    drain_seconds: float
    silent_seconds: float = SILENT_SECONDS
    metrics: Shown | None = None


class _Process(NamedTuple):
    """A running one, and our end of the link to it."""

    pid: int
    link: socket


def serve_by(
    crew: Crew, listening: socket, supervisor: Supervisor, on_ready: Callable[[Ready], None]
) -> None:
    """Serve by several processes until a signal says to stop.

    Args:
        crew: Who serves.
        listening: The socket; it is closed at the end, as is that of the metrics.
        supervisor: Is told when all are ready. What it handed over keeps its queue.
        on_ready: Called before it is told.

    Raises:
        ConfigError: A process ended with code 1 before all were ready; it has said why.
        AttestKitError: It ended so in another way.
    """
    with ExitStack() as stack:
        stack.enter_context(listening)
        if crew.metrics is not None:
            stack.enter_context(crew.metrics.socket)
        asyncio.run(_Foreman(crew, listening, supervisor, on_ready).run())


class _Foreman:
    def __init__(
        self,
        crew: Crew,
        listening: socket,
        supervisor: Supervisor,
        on_ready: Callable[[Ready], None],
    ) -> None:
        self._crew = crew
        self._listening = listening
        self._supervisor = supervisor
        self._on_ready = on_ready
        self._ready: set[int] = set()  # places whose process accepts
        self._running: dict[int, _Process] = {}  # by place, from 1 on
        self._stopping = asyncio.Event()
        self._all_ready = False
        self._failed: AttestKitError | None = None
        self._tally = Tally()
        self._unread: set[int] = set()  # places whose counts were complained of

    async def run(self) -> None:
        """Serve until a signal, or until a process does not start."""
        with until_signalled(self._stopping.set, self._kill):
            async with showing(self._crew.metrics, self._tally, self._stopping.set):
                await self._run()
        if self._failed is not None:
            raise self._failed

    async def _run(self) -> None:
        places = [asyncio.create_task(self._keep(at + 1)) for at in range(self._crew.size)]
        for task in places:  # else a mistake of ours would leave a place empty, unseen
            task.add_done_callback(lambda _: self._stopping.set())
        await self._stopping.wait()
        self._supervisor.manager.stopping()
        await self._stop(places)

    # -- one place ---------------------------------------------------------------------------------

    async def _keep(self, place: int) -> None:
        """Have a process at a place until we stop."""
        loop, pause = asyncio.get_running_loop(), _FIRST_PAUSE
        while not self._stopping.is_set():
            begin = loop.time()
            try:
                how = await self._live(place)
            except OSError as error:  # no process, no descriptor left
                how = f"could not be started: {error.strerror or error}"
                self._lose(how, 3)
            if self._stopping.is_set():
                return
            self._tally.restarts += 1
            pause = _FIRST_PAUSE if loop.time() - begin >= _LASTED else pause
            _logger.warning("worker %d %s; another starts in %g s", place, how, pause)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _live(self, place: int) -> str:
        """Start a process and hear it until it has ended; return how it ended."""
        process = _start(self._crew.arguments, self._listening)
        self._running[place] = process
        try:
            await self._hear(place, process)
        finally:
            self._ready.discard(place)
            self._tally.workers = len(self._ready)
            self._tally.lose(place)
            self._unread.discard(place)
            del self._running[place]
            process.link.close()
            code = _reap(process.pid)
        how = f"ended with code {code}" if code >= 0 else f"was ended by signal {-code}"
        self._lose(f"(process {process.pid}) {how}", code)
        return f"(process {process.pid}) {how}"

    async def _hear(self, place: int, process: _Process) -> None:
        """Hear a process until its end of the link closes, or is silent for too long."""
        while True:
            try:
                said = await self._next(process.link)
            except ConnectionError:  # it went with something of ours unread
                return
            if said is None:
                if not self._stopping.is_set():  # else the time to finish bounds it
                    _logger.warning("worker %d hangs: it is killed", place)
                    return
                continue
            if not said:
                return
            if said == READY:
                self._ready.add(place)
                self._tally.workers = len(self._ready)
                self._tell()
            elif said.startswith(COUNTS):
                self._count(place, said)
            elif said != ALIVE:
                _logger.debug("worker %d says %s", place, ascii(said))

    def _count(self, place: int, said: bytes) -> None:
        try:
            self._tally.hear(place, said[len(COUNTS) :])
        except FormatError as error:  # another version of ours was put below a running service
            if place not in self._unread:
                _logger.warning("worker %d counts what cannot be read: %s", place, error)
            self._unread.add(place)

    async def _next(self, link: socket) -> bytes | None:
        """Return what a process says next, nothing at its end; None if it is silent for too long.

        When all of us were stopped (a container that was paused, a machine that was a snapshot) our
        time is over the moment we wake, and the process has had none to say anything. So it is
        given ten seconds more, which begin when we are awake.
        """
        said = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(link, _LONGEST))
        try:
            for seconds in (self._crew.silent_seconds, _AWAKE_SECONDS):
                # Not wait_for, which may drop what comes at the very moment.
                await asyncio.wait({said}, timeout=seconds)
                if said.done():
                    return said.result()
            return None
        finally:
            said.cancel()

    def _tell(self) -> None:
        """Say once that all are ready."""
        if self._all_ready or len(self._ready) < self._crew.size or self._stopping.is_set():
            return
        self._all_ready = True
        sockets = {"verifier": self._listening}
        if self._crew.metrics is not None:
            sockets["verifier_metrics"] = self._crew.metrics.socket
        ready = Ready(
            {name: f"http://{Address(*at.getsockname()[:2])}" for name, at in sockets.items()}
        )
        self._on_ready(ready)
        self._supervisor.manager.ready(str(ready))
        if self._supervisor.watchdog:
            self._watching = asyncio.create_task(self._supervisor.manager.watch(ready.places))

    def _lose(self, how: str, code: int) -> None:
        """Give up if one ended before all were ready: another start would mend nothing."""
        if self._all_ready or self._stopping.is_set():
            return
        kind = ConfigError if code == 1 else AttestKitError
        self._failed = kind(f"a worker {how} before all were ready: its own line says why")
        self._stopping.set()

    # -- the end -----------------------------------------------------------------------------------

    async def _stop(self, places: "Sequence[asyncio.Task[None]]") -> None:
        """Let nobody in, have everybody who is in answered, and end."""
        ours = "verifier" not in self._supervisor.handed_over
        Door(self._listening, ours).turn_away()
        await asyncio.sleep(HANDSHAKE_SECONDS)  # who was half way is in the queue then
        for place, process in self._running.items():
            if place in self._ready:
                with suppress(OSError):  # it has just ended
                    process.link.send(STOP)
            else:
                os.kill(process.pid, signal.SIGTERM)
        _, late = await asyncio.wait(places, timeout=self._crew.drain_seconds + _GRACE)
        for place, process in self._running.items():
            _logger.warning("worker %d does not end: it is killed", place)
            os.kill(process.pid, signal.SIGKILL)
        if late:
            await asyncio.wait(late)
        for task in places:
            task.result()

    def _kill(self) -> None:
        """End all processes there and then; they are not reaped yet, so the numbers are theirs."""
        for process in tuple(self._running.values()):
            os.kill(process.pid, signal.SIGKILL)


def _reap(pid: int) -> int:
    """Return the exit code of a process whose link is closed, or which hangs.

    It closes its end by ending alone, and a kill does not change the code of what is about to end.
    """
    os.kill(pid, signal.SIGKILL)  # not reaped, so the number is still its own
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _interpreter_flags() -> list[str]:
    """Return the options that give another interpreter what this one was given.

    Without -I a process would run what its environment names, as sitecustomize, before our program.
    """
    given = [(letter, int(getattr(sys.flags, name, 0))) for name, letter in _FLAGS.items()]
    flags = [f"-{letter * times}" for letter, times in given if times > 0]
    flags += [f"-W{option}" for option in sys.warnoptions]
    options: dict[str, str | bool] = getattr(sys, "_xoptions", {})  # of CPython, and documented
    flags += [f"-X{key}" if value is True else f"-X{key}={value}" for key, value in options.items()]
    return flags


def _start(arguments: Sequence[str], listening: socket) -> _Process:
    """Start our program with the socket and a link; nothing else of ours is open in it.

    It is the leader of a group of its own: what a terminal sends goes to the foreman alone.

    Raises:
        OSError: There is no descriptor, no memory or no process left.
    """
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    ours.settimeout(0)
    with ExitStack() as stack:
        stack.callback(theirs.close)
        try:
            given = []
            for each in (listening, theirs):
                given.append(fcntl(each, F_DUPFD_CLOEXEC, _FREE))
                stack.callback(partial(os.close, given[-1]))
            program = _PROGRAM.format(path=sys.path, link=LINK)
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, *_interpreter_flags(), "-c", program, *arguments],
                dict(os.environ),
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, given[0], _SOCKET),
                    (os.POSIX_SPAWN_DUP2, given[1], LINK),
                ],
                setpgroup=0,
            )
        except BaseException:
            ours.close()
            raise
    return _Process(pid, ours)
