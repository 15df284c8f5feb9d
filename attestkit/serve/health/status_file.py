"""Health from a file that the app writes: a line with its state, and one with the time.

The app chooses the path and the content, which is never part of a verdict.
"""

import asyncio
import errno
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from attestkit._system.untrusted_files import open_regular
from attestkit.serve.health.verdict import HEALTHY, HealthVerdict, safe_text, unhealthy

MAX_BYTES: Final = 4096
"""Limit of the bytes that are read."""

MAX_AGE: Final = 60
"""Seconds after which a written state is stale."""

_NAME: Final = "<health_file>"
_SECONDS: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
_MAX_UINT64: Final = 2**64 - 1
_STATES: Final = {"healthy": "", "unhealthy": "app reports unhealthy"}
_WHITESPACE: Final = " \t\r\v\f"
# Errors of opening a folder, a pipe or device, and a socket.
_NOT_REGULAR: Final = frozenset({errno.EISDIR, errno.EINVAL, errno.ENXIO})


class StatusFile:
    """Check of one status file.

    Args:
        path: Path of the file.
        now: Returns the Unix time.
    """

    def __init__(self, path: str, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._reading: Future[bytes] | None = None

    async def check(self) -> HealthVerdict:
        """Read and appraise the file."""
        # On a file system that hangs, the thread outlives the time limit; wait for it again instead
        # of starting another one.
        if self._reading is None:
            self._reading = _read_in_thread(self._path)
        shown = safe_text(self._path)
        try:
            content = (await asyncio.wrap_future(self._reading)).decode()
        except FileNotFoundError:
            return unhealthy(_NAME, f"{shown} has not been written yet")
        except (OSError, ValueError) as error:
            return unhealthy(_NAME, f"cannot read {shown}: {_cause(error)}")
        finally:
            if self._reading.done():
                self._reading = None
        return appraise_status(content, self._now())


def appraise_status(content: str, now: float) -> HealthVerdict:
    """Return the verdict of a file's content at a Unix time."""
    problem = _problem(content, int(now))
    return unhealthy(_NAME, problem) if problem else HEALTHY


def _problem(content: str, now: int) -> str:
    """Return why the content does not state that the app is healthy; empty if it does."""
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
    """Read the file in a daemon thread, for which the exit of the server does not wait."""
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
