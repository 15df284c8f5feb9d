"""The program in a process of its own, and pipes for it."""

import contextlib
import errno
import os
import select
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


def read_to_end(*descriptors: int) -> list[str]:
    """Read pipes and terminals to their end, which for a terminal is an OSError."""
    found = dict.fromkeys(descriptors, b"")
    unread = set(descriptors)
    while unread:
        for ready in select.select(unread, [], [], 60)[0]:
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
