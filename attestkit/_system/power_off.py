"""Power-off of the machine by systemd, without running a program."""

import os
import signal
from pathlib import Path

from attestkit.errors import BackendError


def power_off(booted: Path = Path("/run/systemd/system")) -> None:
    """Start the power-off: SIGRTMIN+4 to systemd starts poweroff.target (systemd(1), SIGNALS).

    Args:
        booted: Folder that exists if systemd is the init of this system (sd_booted(3)).

    Raises:
        BackendError: If the first process is not systemd, or this process may not signal it.
    """
    if os.getpid() == 1 or not booted.is_dir():
        problem = "power-off: systemd does not run here"
        raise BackendError(problem, reason="missing")
    try:
        os.kill(1, signal.SIGRTMIN + 4)
    except OSError as error:
        problem = f"power-off: cannot signal systemd: {error.strerror}; run as root"
        raise BackendError(problem, reason="permission_denied") from error
