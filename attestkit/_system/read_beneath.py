"""Files of a folder that somebody else fills, whose links are followed as long as they stay in it.

Orchestrators lay files down so: of a Kubernetes ConfigMap `app-compose.json` is a link to
`..data/app-compose.json`, and `..data` one to the folder of the version that holds. A link that
leads out of the folder would have one of the reader's own files read, and is refused.

The way is gone by descriptors, a name at a time, and no link is left for the kernel to follow: what
is opened is what was looked at, whoever changes the folder meanwhile. (Linux' openat2 does the same
with RESOLVE_BENEATH; Python has it not.)
"""

import errno
import os
from collections import deque
from pathlib import Path
from typing import Final

from attestkit._system.untrusted_files import path_flag, read_regular

__all__ = ["read_beneath"]

_MOST_LINKS: Final = 8  # on one way; Kubernetes has two
_DEEPEST: Final = 16  # folders on the way, each of which is open
_OUT: Final = "a link that leads out of its folder, which is not followed here"
_LONG: Final = "a link that leads on and on, which is not followed here"
_FOLDER: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def read_beneath(folder: Path, name: str, most: int) -> bytes:
    """Return what a regular file holds, at most so many bytes; the object is the caller's alone.

    Args:
        folder: Where; this may be a link itself, for whoever names it has chosen it.
        name: The file's name in it: the file, or a link to another file beneath the folder.
        most: Bytes.

    Raises:
        OSError: It cannot be read, is no regular file, or is a link that leads out of the folder
            (ELOOP), as every absolute one does, or on and on.
        UnsupportedError: This is no Linux.
    """
    way = [os.open(folder, path_flag() | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        last = _go(way, name)
        # The descriptor stands for the folder; the last part, if it is a link now, is refused.
        return read_regular(f"/proc/self/fd/{way[-1]}/{last}", most)
    finally:
        for fd in way:
            os.close(fd)


def _go(way: list[int], name: str) -> str:
    """Go from the first folder to that of the file, `way` being the folders gone through.

    Return the file's name in the last of them. The way back is the one that was gone: where `..`
    leads by now, should somebody have moved a folder, does not matter.
    """
    links = 0
    parts = deque([name])
    while parts:
        part = parts.popleft()
        if part in {"", "."}:
            continue
        if part == "..":
            if len(way) == 1:
                raise OSError(errno.ELOOP, _OUT)
            os.close(way.pop())
            continue
        target = _target(part, way[-1])
        if target is not None:
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, _LONG)
            if target.startswith("/"):
                raise OSError(errno.ELOOP, _OUT)
            parts.extendleft(reversed(target.split("/")))
        elif not parts:
            return part
        elif len(way) > _DEEPEST:
            raise OSError(errno.ELOOP, _LONG)
        else:
            way.append(os.open(part, path_flag() | _FOLDER, dir_fd=way[-1]))
    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))


def _target(name: str, folder: int) -> str | None:
    """Return where a link leads, None for what is no link."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
