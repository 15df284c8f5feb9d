"""Protection of a process: memory, command line, streams; and the power-off of the machine.

Only attestkit's programs use this, never the library: it also prevents the user from debugging or
profiling the process.

The power-off is by systemd, without running a program.
"""

import contextlib
import errno
import os
import re
import signal
from pathlib import Path
from typing import Final, TextIO

from attestkit.errors import BackendError

_PR_GET_DUMPABLE: Final = 3  # include/uapi/linux/prctl.h
_PR_SET_DUMPABLE: Final = 4
_ARG_START: Final = 48 - 3  # index in /proc/PID/stat (proc_pid_stat(5)) after the process name
# A seed, as an option of a command or of a backend; `@` introduces a file name instead.
_SEED: Final = re.compile(rb"(?<=\0)(?:--seed[=\0]|(?:--option=)?seed=)([^@\0][^\0]*)")


def open_standard_streams() -> None:
    """Open /dev/null in place of closed standard streams.

    Otherwise a socket or device could get the descriptor of stderr, and receive the log.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def discard_output(stream: TextIO) -> None:
    """Redirect a stream to /dev/null, because the interpreter flushes its buffer at exit."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def hide_memory() -> None:
    """Disable core dumps, and access to this process's memory by other processes of the user.

    Only root can then trace the process, and read its `/proc/PID/mem`, `environ` and `maps`. The
    setting is inherited by fork and reset by exec.

    Raises:
        OSError: If the system does not support it, or a seccomp filter forbids it.
    """
    import ctypes
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    # A core_pattern that pipes to a program ignores RLIMIT_CORE, but not PR_SET_DUMPABLE.
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is None:
        raise OSError("prctl: not available on this system")
    unused = (ctypes.c_ulong(0),) * 3
    if prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), *unused):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_DUMPABLE): {os.strerror(number)}")
    if prctl(_PR_GET_DUMPABLE, ctypes.c_ulong(0), *unused):  # some sandboxes ignore the call
        raise OSError(errno.ENOSYS, "prctl(PR_SET_DUMPABLE): no effect on this system")


def hide_seed() -> None:
    """Overwrite a seed in this process's command line, which every user can read.

    Another process may have read the seed before, and the shell may store it in its history: prefer
    a file. Does nothing on systems that do not report the address of the command line.
    """
    try:
        found = [match.span(1) for match in _SEED.finditer(Path("/proc/self/cmdline").read_bytes())]
        if not found:
            return
        start = int(Path("/proc/self/stat").read_bytes().rpartition(b") ")[2].split()[_ARG_START])
    except (OSError, ValueError, IndexError):
        return
    import ctypes

    for first, end in found:
        if start:
            ctypes.memset(start + first, ord("x"), end - first)


def power_off(booted: Path = Path("/run/systemd/system")) -> None:
    """Start the power-off: SIGRTMIN+4 to systemd starts poweroff.target (systemd(1), SIGNALS).

    Args:
        booted: Folder that exists if systemd is the init of this system (sd_booted(3)).

    Raises:
        BackendError: If the first process is not systemd, or this process may not signal it.
    """
    if os.getpid() == 1 or not booted.is_dir():
        raise BackendError("power-off: the init of this system is not systemd", reason="missing")
    try:
        os.kill(1, signal.SIGRTMIN + 4)
    except OSError as error:
        problem = f"power-off: cannot signal systemd: {error.strerror}; run as root"
        raise BackendError(problem, reason="permission_denied") from error
