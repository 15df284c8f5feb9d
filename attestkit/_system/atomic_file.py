"""Atomic replacement of files, also across a crash."""

import os
import tempfile
from pathlib import Path


def replace_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write `content` to a temporary file, flush it to disk, and rename it to `path`.

    A killed process may leave a temporary file `.NAME.*` in the same folder.

    Args:
        path: File in an existing folder.
        content: New content of the file.
        mode: Permission bits of the new file.

    Raises:
        OSError: If the file cannot be written; its old content is then unchanged.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)  # mkstemp makes files for one user
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
