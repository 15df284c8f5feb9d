"""Named pipes, which show a test that a program has started to read."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import subprocess

PATIENCE: Final = 120  # seconds


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
