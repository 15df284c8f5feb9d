"""Initializers of processes; the module imports little, so that the processes start fast."""

import os
import signal
from pathlib import Path


def hang_after_first_process(folder: Path) -> None:
    """Hang in every process but the first."""
    (folder / str(os.getpid())).touch()
    if len(list(folder.iterdir())) > 1:
        signal.pause()


def fail_initializer(folder: Path) -> None:
    """Create a file named by the PID, and exit."""
    (folder / str(os.getpid())).touch()
    os._exit(1)
