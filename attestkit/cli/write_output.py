"""What commands write: a file holds the old or the new content, never a part of it."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from attestkit.collateral.atomic_file import replace_file
from attestkit.errors import UsageError

__all__ = ["check_output", "is_stdout", "write_output"]

_STDOUT = ("-", "/dev/stdout")


def is_stdout(path: Path) -> bool:
    """Tell whether a path means stdout."""
    return str(path) in _STDOUT


def check_output(option: str, path: Path | None, inputs: Iterable[Path]) -> None:
    """Refuse an output that is also an input, by whatever name, for it would be gone.

    Raises:
        UsageError: It is the file of one of `inputs`; the text names `option`.
    """
    if path is None or is_stdout(path) or not path.is_file():
        return
    for read in inputs:
        if _is_stdin(path) if str(read) == "-" else _is_same(path, read):
            raise UsageError(f"{option} {path} is {read}, which is read: write to another file")


def _is_stdin(path: Path) -> bool:
    """Tell whether the shell made a file our stdin, which `-` reads."""
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdin.fileno()))
    except (OSError, ValueError, AttributeError):  # there is no stdin
        return False


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # not there; whoever reads it says so
        return False


def write_output(option: str, path: Path, text: str, *, mode: int = 0o644) -> bool:
    """Write text, UTF-8, to a file; into a pipe or a device as it is.

    Returns:
        False if the path was stdout, which then has nothing but the text.

    Raises:
        UsageError: It cannot be written there; the text names `option`.
    """
    if is_stdout(path):
        sys.stdout.write(text)
        return False
    content = text.encode()
    try:
        if path.exists() and not path.is_file():  # a device is to be written, not replaced
            with path.open("wb") as file:
                file.write(content)
        else:
            replace_file(path.resolve(), content, mode=mode)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "not a path"
        raise UsageError(f"{option} {path}: cannot be written: {reason}") from error
    return True
