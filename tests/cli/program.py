"""The program in a process of its own, and pipes for it."""

import contextlib
import errno
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tests.serve.server import environment

PATIENCE: Final = 120  # seconds
SEED: Final = "11" * 32
SIMULATED: Final = ("--backend", "simulator", "--option", f"seed={SEED}")
WARNING: Final = "attestkit: SIMULATED: proves nothing about hardware"


def run(
    *words: str, wrapper: Sequence[str] = (), **more: Any
) -> "subprocess.CompletedProcess[Any]":
    """Run attestkit, by the command `wrapper` if given; `more` are arguments of subprocess.run."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if "input" in more:
        del pipes["stdin"]
    usual = {**pipes, "env": environment(), "errors": "replace", "timeout": PATIENCE}
    words = (*wrapper, sys.executable, "-m", "attestkit", *words)
    return subprocess.run(words, check=False, **{**usual, **more})


def start(*words: str, **more: Any) -> "subprocess.Popen[bytes]":
    """Start attestkit with pipes; `more` are arguments of subprocess.Popen."""
    usual = {
        "env": environment(),
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    return subprocess.Popen([sys.executable, "-m", "attestkit", *words], **{**usual, **more})


class Forks:
    """The program in forks of a process that has imported it.

    To start Python and import a command takes ten times as long as most calls. A fork has its own
    arguments, streams and exit, at which it flushes its output. Only a stream that is closed at
    the start needs another process.
    """

    def __init__(self, environ: dict[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(PATIENCE)
        words = [sys.executable, "-m", "tests.cli.forking_process", str(theirs.fileno())]
        with theirs:
            # Not a terminal, as which Python would flush each line: a fork has its buffers.
            self._process = subprocess.Popen(
                words, env=environ, pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL
            )

    def run(
        self, *words: str, stdout: int | None = None, stderr: int | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run the program with `words`, by default with a pipe as stdout and as stderr."""
        readers: list[int] = []
        streams = [os.open(os.devnull, os.O_RDONLY)]
        for given in (stdout, stderr):
            if given is None:
                reader, writer = os.pipe()
                readers.append(reader)
            else:
                writer = os.dup(given)
            streams.append(writer)
        try:
            socket.send_fds(self._socket, [json.dumps(words).encode()], streams)
            for descriptor in streams:
                os.close(descriptor)
            found = iter(read_to_end(*readers))
            code = int(self._socket.recv(64))
        except BaseException:
            self._process.kill()  # its late answer would be taken for that to the next call
            raise
        finally:
            for descriptor in readers:
                os.close(descriptor)
        out, err = (next(found) if given is None else "" for given in (stdout, stderr))
        return subprocess.CompletedProcess(words, code, out, err)

    def close(self) -> None:
        """End the process."""
        self._socket.close()
        assert self._process.wait(PATIENCE) == 0


def read_to_end(*descriptors: int) -> list[str]:
    """Read pipes and terminals to their end, which for a terminal is an OSError.

    Fails if there is nothing to read for `PATIENCE` seconds.
    """
    found = dict.fromkeys(descriptors, b"")
    unread = set(descriptors)
    while unread:
        readable = select.select(unread, [], [], PATIENCE)[0]
        assert readable, f"no output for {PATIENCE} seconds"
        for ready in readable:
            try:
                got = os.read(ready, 65536)
            except OSError:
                got = b""
            found[ready] += got
            if not got:
                unread.discard(ready)
    return [data.decode(errors="replace") for data in found.values()]


@contextlib.contextmanager
def closed_pipe() -> Iterator[int]:
    """Yield the descriptor of a pipe that has no reader."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@contextlib.contextmanager
def wait_until_read(pipe: Path, process: "subprocess.Popen[Any]") -> Iterator[None]:
    """Yield when a program has opened a pipe; at the end close it and wait for the program.

    Python handles a signal that arrives just before read(2) only after that returns, so end the
    block after the signal: this closes the pipe.

    A program that ends early fails the test, and one that takes longer than `PATIENCE` is killed.
    """
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        writer = _open_writer(pipe, process)
        try:
            yield
        finally:
            os.close(writer)
        process.wait()
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()
        timer.join()


def _open_writer(pipe: Path, process: "subprocess.Popen[Any]") -> int:
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no reader yet
                raise
        assert process.poll() is None, f"{process.returncode}: ended before it read {pipe}"
        time.sleep(0.01)
