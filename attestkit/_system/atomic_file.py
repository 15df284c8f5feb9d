"""Files that hold their old or their new content, never a part of one, also across a crash."""

import os
import tempfile
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write `content` beside `path`, flush it to the disk, and put it in its place.

    A process that is killed on the way leaves a file whose name begins with a dot and that of
    `path`, and then has another dot.

    Args:
        path: Where; its folder is there.
        content: All of it.
        mode: The permission bits of the new file.

    Raises:
        OSError: It cannot be written; the old content is still there.
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
