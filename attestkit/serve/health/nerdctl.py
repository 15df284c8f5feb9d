"""States of the containers that nerdctl has created, for the runner `nerdctl-compose`."""

import asyncio
import subprocess
from collections.abc import Sequence
from typing import Final

from attestkit.errors import BackendError, BackendUnavailableError, FormatError
from attestkit.serve.docker.responses import (
    MAX_INSPECTED,
    MAX_LIST,
    NAME,
    ContainerState,
    read_states,
)
from attestkit.serve.health.verdict import HealthVerdict, appraise_containers

COMMAND: Final = ("nerdctl", "--namespace", "dstack")
"""The command; the namespace has the app's containers only."""


async def check_nerdctl(command: Sequence[str] = COMMAND) -> HealthVerdict:
    """Return the verdict on all containers of the namespace.

    Raises:
        BackendError: If nerdctl is missing or fails, or its output is malformed or too large.
    """
    return appraise_containers(await _inspect(command))


async def _inspect(command: Sequence[str]) -> list[ContainerState]:
    ids = (await _output(*command, "ps", "-a", "-q")).decode("ascii", "replace").split()
    if not ids:
        return []
    if len(ids) > MAX_INSPECTED:
        problem = f"nerdctl: {len(ids)} containers, more than {MAX_INSPECTED}"
        raise BackendError(problem, reason="too_large")
    if not all(map(NAME.fullmatch, ids)):
        raise BackendError("nerdctl ps: not a list of ids", reason="malformed_response")
    try:
        return read_states(await _output(*command, "inspect", *ids))
    except FormatError as error:
        raise BackendError(f"nerdctl inspect: {error}", reason="malformed_response") from error


async def _output(program: str, *words: str) -> bytes:
    """Return what a program prints, at most 4 MiB; it is killed if it does not end in time."""
    loop = asyncio.get_running_loop()
    try:
        transport, output = await loop.subprocess_exec(
            _Output,
            program,
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
    if len(output.data) > MAX_LIST:
        problem = f"nerdctl: output exceeds {MAX_LIST >> 20} MiB"
        raise BackendError(problem, reason="too_large")
    if status:
        raise BackendError(f"nerdctl: exit status {status}", reason="io_error")
    return bytes(output.data)


class _Output(asyncio.SubprocessProtocol):
    """Output of a program; reading ends early if it is too large."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = asyncio.Event()
        self.gone = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.data += data
        if fd == 1 and len(self.data) > MAX_LIST:
            self.ended.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Record that the program has ended, and that its output was received or closed."""
        del exc
        self.ended.set()
        self.gone.set()
