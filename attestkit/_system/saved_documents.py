"""Files of one document each: bounded reads and atomic writes, whose errors name the file."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from attestkit._system.atomic_file import replace_file
from attestkit.errors import AttestKitError, CollateralError, FormatError

_Document = TypeVar("_Document")


def load_document(
    path: str | os.PathLike[str],
    limit: int,
    decode: Callable[[bytes], _Document],
    unreadable: Callable[[str], AttestKitError],
) -> _Document:
    """Read a file and return its document.

    Args:
        path: Path of the file.
        limit: Maximum size in bytes; `decode` is given one byte more of a larger file.
        decode: Returns the document; it refuses content over the limit.
        unreadable: Returns the error for a file that cannot be read.

    Raises:
        AttestKitError: That of `unreadable`, or a CollateralError or FormatError of `decode` with
            the path before its text.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise unreadable(f"{name}: cannot be read: {error}") from error
    try:
        return decode(content)
    except CollateralError as error:
        raise CollateralError(f"{name}: {error}", reason=error.reason) from error
    except FormatError as error:
        raise FormatError(f"{name}: {error}", reason=error.reason) from error


def save_document(
    path: str | os.PathLike[str],
    content: bytes,
    unwritable: Callable[[str], AttestKitError],
    *,
    mode: int,
) -> None:
    """Write a file, replacing an existing one atomically; see `replace_file`.

    Raises:
        AttestKitError: That of `unwritable`, if the file cannot be written.
    """
    try:
        replace_file(Path(path), content, mode=mode)
    except (OSError, ValueError) as error:
        raise unwritable(f"{os.fspath(path)}: cannot be written: {error}") from error
