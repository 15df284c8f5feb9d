"""Whether this user may have namespaces of its own, asked by having them."""

import os
import subprocess
from collections.abc import Sequence


def unshare(*options: str) -> list[str]:
    """Return the words before those of a program in new namespaces, in which it is root."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return ["unshare", *user, *options]


def refusal(words: Sequence[str]) -> str:
    """Return the last line of what a program complains of, nothing if it ends well."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"{words[0]} ended with {done.returncode}"])[-1]
