"""Pipes with names that a program reads, as a test's way to know how far the program is."""

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
def being_read(pipe: Path, process: "subprocess.Popen[Any]") -> Iterator[None]:
    """Yield once a program has opened a pipe, and hold it open; at the end wait for the program.

    A signal that comes between Python's last look for one and read(2) is seen when that returns: so
    let the block end with the signal, for its end closes the pipe.

    A program that ends before fails the test, and one that takes longer than `PATIENCE` is killed.
    """
    timer = threading.Timer(PATIENCE, process.kill)
    timer.start()
    try:
        writer = _opened(pipe, process)
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


def _opened(pipe: Path, process: "subprocess.Popen[Any]") -> int:
    while True:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # which is: nobody reads it
                raise
        assert process.poll() is None, f"{process.returncode}: it ended before it read {pipe}"
        time.sleep(0.01)
