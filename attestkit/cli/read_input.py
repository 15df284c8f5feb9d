"""The bytes of what a command reads: a file, or stdin."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import click

from attestkit.errors import AttestKitError, FormatError, UsageError

__all__ = ["open_input", "read_file"]

STDIN: Final = "-"
LARGEST: Final = 32 * 1024 * 1024  # bytes; twice the largest log that the parsers take
_STDIN_READ: Final = "attestkit.stdin_read"  # of the running command


@contextlib.contextmanager
def open_input(path: Path) -> Iterator[BinaryIO]:
    """Open a file for its bytes; `-` is stdin, which can be read once.

    Raises:
        FormatError: It cannot be opened or, by the caller, read; the text names the file.
        UsageError: Stdin has been read before.
    """
    opened = _stdin() if str(path) == STDIN else None
    try:
        if opened is not None:
            yield opened
        else:
            with path.open("rb") as file:
                yield file
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, AttestKitError):
            raise
        reason = getattr(error, "strerror", None) or "cannot be read"
        raise FormatError(f"{path}: {reason}") from error


def read_file(path: Path) -> bytes:
    """Return the content of a file of at most 32 MiB.

    Raises:
        FormatError: As `open_input`; or it is longer.
        UsageError: As `open_input`.
    """
    with open_input(path) as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise FormatError(f"{path}: longer than {LARGEST} bytes")
    return data


def _stdin() -> BinaryIO:
    """Return stdin, once in a command: the second reader would find it empty."""
    meta = click.get_current_context().meta
    if meta.get(_STDIN_READ):
        raise UsageError(f"{STDIN} is stdin, which can be read once: name a file")
    meta[_STDIN_READ] = True
    if sys.stdin is None:
        raise FormatError(f"{STDIN}: stdin is closed")
    return sys.stdin.buffer
