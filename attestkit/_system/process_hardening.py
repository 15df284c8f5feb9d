"""What a process with secrets in it hides from others: its memory, and a seed in its command line.

Only programs do this to themselves, not the library: a process that may not be looked into cannot
be debugged or profiled by its user either, which is for its owner to choose.
"""

import errno
import os
import re
from pathlib import Path
from typing import Final

__all__ = ["hide_memory", "hide_seed"]

_PR_GET_DUMPABLE: Final = 3  # include/uapi/linux/prctl.h
_PR_SET_DUMPABLE: Final = 4
_ARG_START: Final = 48 - 3  # place in /proc/PID/stat (proc_pid_stat(5)), behind the name
# A seed, which `@` would make the name of a file: as an option, or as one of a backend.
_SEED: Final = re.compile(rb"(?<=\0)(?:--seed[=\0]|(?:--option=)?seed=)([^@\0][^\0]*)")


def hide_memory() -> None:
    """Leave no core file, and let no other process of this user look into this one.

    From then on `/proc/PID/mem`, `environ` and `maps` are root's, and so is tracing. It ends with
    the next exec; a fork keeps it.

    Raises:
        OSError: The system does not do that, or a filter of system calls forbids it.
    """
    import ctypes
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    # The limit does not bind a program that is handed the memory (core_pattern); this does.
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is None:
        raise OSError("there is no prctl on this system")
    unused = (ctypes.c_ulong(0),) * 3
    if prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), *unused):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_DUMPABLE): {os.strerror(number)}")
    if prctl(_PR_GET_DUMPABLE, ctypes.c_ulong(0), *unused):  # a sandbox says yes and does nothing
        raise OSError(errno.ENOSYS, "prctl(PR_SET_DUMPABLE) succeeds and changes nothing here")


def hide_seed() -> None:
    """Write over a seed in this process's command line, which everybody may read.

    Somebody who looked before has seen it, and so may have the shell's history: a file is better.
    Where the system does not say where the command line is, it stays.
    """
    try:
        line = Path("/proc/self/cmdline").read_bytes()
        found = [match.span(1) for match in _SEED.finditer(line)]
        if not found:
            return
        stat = Path("/proc/self/stat").read_bytes().rpartition(b") ")[2].split()
        start = int(stat[_ARG_START])
    except (OSError, ValueError, IndexError):
        return
    import ctypes

    for first, end in found:
        if start:
            ctypes.memset(start + first, ord("x"), end - first)
