"""Shared parts of the subjects: a seed, a private folder, and edits of module text."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TypeAlias

__all__ = ["SEED", "Edit", "private_folder"]

Edit: TypeAlias = Callable[[str], str]
"""Changes the text of a module; `str` leaves it unchanged."""
SEED: Final = bytes(range(32))
_FAST: Final = Path("/dev/shm")


def private_folder(stack: ExitStack) -> Path:
    """Return a folder that is removed with `stack`."""
    fast = _FAST if _FAST.is_dir() else None
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ak", dir=fast)))
