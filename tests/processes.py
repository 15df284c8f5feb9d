"""Run a program, or a function in a forked process."""

import os
import signal
import subprocess
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_CHILD_SECONDS: Final = 30


def run_program(
    *words: str | Path, check: bool = False, **more: Any
) -> "subprocess.CompletedProcess[str]":
    """Return exit code and output of a program; `more` are arguments of subprocess.run."""
    return subprocess.run(words, check=check, **{"capture_output": True, "text": True, **more})


def in_child(work: Callable[[], object]) -> bool:
    """Return whether a function returns in a forked process, in time and without an exception."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside other threads
        child = os.fork()
    if child == 0:  # no exception may leave the child
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_CHILD_SECONDS)
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - shown by pytest
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@contextmanager
def opened_in_child() -> "Iterator[None]":
    """Context manager: keep the open files open in a forked process, too, as long as it runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside other threads
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_CHILD_SECONDS)
        signal.pause()
        os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
