"""Detection of the right to create namespaces."""

import os
import subprocess
from collections.abc import Sequence


def unshare_command(*options: str) -> list[str]:
    """Return the command prefix that runs a program as root of new namespaces."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return ["unshare", *user, *options]


def last_error_line(words: Sequence[str]) -> str:
    """Return the last line of a program's stderr, or "" if it succeeds."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"{words[0]} ended with {done.returncode}"])[-1]
