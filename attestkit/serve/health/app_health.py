"""Health checks of an app, and the choice of one by app-compose.json.

The checks are the states of the containers that nerdctl has created, for the runner
`nerdctl-compose`, and a file that the app writes: a line with its state, and one with the time. The
app chooses the path and the content of the file, which is never part of a verdict.
"""

import asyncio
import errno
import os
import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final

from attestkit._system.untrusted_files import open_regular
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import BackendError, BackendUnavailableError, FormatError
from attestkit.serve.docker import responses
from attestkit.serve.docker.engine import ContainerEngine
from attestkit.serve.health import monitor

COMMAND: Final = ("nerdctl", "--namespace", "dstack")
"""Start of nerdctl's command lines; its namespace dstack has the app's containers only."""


async def check_nerdctl(command: Sequence[str] = COMMAND) -> monitor.HealthVerdict:
    """Return the health verdict on all containers that nerdctl lists, running or not.

    `command` is the start of its command lines: the program and global options.

    Raises:
        BackendError: If nerdctl is missing or fails, or its output is malformed or too large.
    """
    return monitor.appraise_containers(await _inspect(command))


async def _inspect(command: Sequence[str]) -> list[responses.ContainerState]:
    ids = (await _output(command, "ps", "-a", "-q")).decode("ascii", "replace").split()
    if not ids:
        return []
    if len(ids) > responses.MAX_INSPECTED:
        problem = f"nerdctl: over {responses.MAX_INSPECTED} containers; remove unused ones"
        raise BackendError(problem, reason="too_large")
    if not all(map(responses.NAME.fullmatch, ids)):
        raise BackendError("nerdctl ps: output is not a list of ids", reason="malformed_response")
    try:
        return responses.read_states(await _output(command, "inspect", *ids))
    except FormatError as error:
        raise BackendError(f"nerdctl inspect: {error}", reason="malformed_response") from error


async def _output(command: Sequence[str], *words: str) -> bytes:
    """Return the stdout of a program, up to 4 MiB; kill it if the task is cancelled."""
    loop = asyncio.get_running_loop()
    try:
        transport, output = await loop.subprocess_exec(
            _Output,
            *command,
            *words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        problem = f"nerdctl: cannot be run: {error.strerror}"
        raise BackendUnavailableError(problem, reason="missing") from error
    try:
        await output.ended.wait()
        status = transport.get_returncode()
    finally:
        transport.close()  # kills the program, if it has not ended
        await output.gone.wait()
    if len(output.data) > responses.MAX_LIST:
        problem = f"nerdctl: output exceeds {responses.MAX_LIST >> 20} MiB"
        raise BackendError(problem, reason="too_large")
    if status:
        again = shlex.join((*command, "ps", "-a"))
        problem = f"exit status {status}; run `{again}` as this user for the cause"
        raise BackendError(f"nerdctl {words[0]}: {problem}", reason="io_error")
    return bytes(output.data)


class _Output(asyncio.SubprocessProtocol):
    """Output of a program; reading ends early if it is too large."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = asyncio.Event()
        self.gone = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.data += data
        if fd == 1 and len(self.data) > responses.MAX_LIST:
            self.ended.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Record that the program and its output have ended; `exc` is ignored."""
        del exc
        self.ended.set()
        self.gone.set()


MAX_BYTES: Final = 4096
"""Size up to which a status file is read, in bytes; the rest is ignored."""

MAX_AGE: Final = 60
"""Seconds after which the state in a status file is stale."""

_NAME: Final = "<health_file>"
_SECONDS: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
_MAX_UINT64: Final = 2**64 - 1
_STATES: Final = {"healthy": "", "unhealthy": "app reports unhealthy"}
_WHITESPACE: Final = " \t\r\v\f"
# Errors of opening a folder, a pipe or device, and a socket.
_NOT_REGULAR: Final = frozenset({errno.EISDIR, errno.EINVAL, errno.ENXIO})


class StatusFile:
    """Health check by a file that the app writes: its state, and the Unix time of writing.

    Args:
        path: Path of the file.
        now: Returns the Unix time.
    """

    def __init__(self, path: str, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._reading: Future[bytes] | None = None

    async def check(self) -> monitor.HealthVerdict:
        """Read the file, and return the verdict on its content; an unreadable file is unhealthy."""
        # On a file system that hangs, the thread outlives the time limit; wait for it again instead
        # of starting another one.
        if self._reading is None:
            self._reading = _read_in_thread(self._path)
        shown = monitor.safe_text(self._path)
        try:
            content = (await asyncio.wrap_future(self._reading)).decode()
        except FileNotFoundError:
            return monitor.unhealthy(_NAME, f"{shown} has not been written yet")
        except (OSError, ValueError) as error:
            return monitor.unhealthy(_NAME, f"cannot read {shown}: {_cause(error)}")
        finally:
            if self._reading.done():
                self._reading = None
        return appraise_status(content, self._now())


def appraise_status(content: str, now: float) -> monitor.HealthVerdict:
    """Return the verdict on the content of a status file; `now` is the Unix time.

    It is healthy if line 1 is `healthy`, in any letter case, and line 2 a Unix time in seconds that
    is at most 60 s before `now`, or after it.
    """
    problem = _problem(content, int(now))
    return monitor.unhealthy(_NAME, problem) if problem else monitor.HEALTHY


def _problem(content: str, now: int) -> str:
    """Return why a status file does not state that the app is healthy; empty if it does.

    `content` is the text of the file, and `now` the Unix time.
    """
    if not content:
        return "health file is empty"
    lines = content.removesuffix("\n").split("\n")
    if len(lines) == 1:
        return "health file must have two lines: state and unix timestamp"
    state, written = (line.strip(_WHITESPACE) for line in lines[:2])
    if _SECONDS.fullmatch(written) is None or int(written) > _MAX_UINT64:
        return "health file line 2 is not a unix time in seconds"
    if (age := now - int(written)) > MAX_AGE:
        return f"health file is stale: written {age}s ago, limit is {MAX_AGE}s"
    return _STATES.get(state.lower(), "health file line 1 is neither healthy nor unhealthy")


def _cause(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        if error.errno in _NOT_REGULAR:
            return "health file is not a regular file"
        return error.strerror or "input/output error"
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else "invalid path"


def _read_in_thread(path: str) -> "Future[bytes]":
    """Read the file `path` in a daemon thread, for which the exit of the server does not wait."""
    reading: Future[bytes] = Future()
    reading.set_running_or_notify_cancel()  # so that a cancelled check does not cancel it

    def run() -> None:
        try:
            reading.set_result(_read(path))
        except Exception as error:  # noqa: BLE001 - raised by the check
            reading.set_exception(error)

    threading.Thread(target=run, name="attestkit-health", daemon=True).start()
    return reading


def _read(path: str) -> bytes:
    fd = open_regular(path, os.O_RDONLY, follow=True)
    try:
        data = b""
        while len(data) < MAX_BYTES and (piece := os.read(fd, MAX_BYTES - len(data))):
            data += piece
    finally:
        os.close(fd)
    return data


def make_monitor(
    app_compose: AppCompose, engine: ContainerEngine, now: Callable[[], float]
) -> monitor.HealthMonitor | None:
    """Return the monitor of an app; None if the app is always considered healthy.

    This is the case without `requirements.health_check`, or with the runner `bash` and no status
    file.

    Args:
        app_compose: The app's compose file.
        engine: Client of the container engine, for the runner `docker-compose`.
        now: Returns the Unix time.
    """
    requirements = app_compose.requirements
    if requirements is None or not requirements.health_check:
        return None
    if requirements.health_status_file is not None:
        return monitor.HealthMonitor(StatusFile(requirements.health_status_file, now).check)
    if app_compose.runner == "docker-compose":
        return monitor.HealthMonitor(partial(monitor.check_docker, engine))
    return monitor.HealthMonitor(check_nerdctl) if app_compose.runner == "nerdctl-compose" else None
