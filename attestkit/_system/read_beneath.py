"""Read a file beneath an untrusted directory, following only symbolic links that stay inside it.

Links are needed: in a Kubernetes ConfigMap, `app-compose.json` links to `..data/app-compose.json`,
and `..data` to the directory of the current version. A link that leaves the directory would expose
other files of the reader.

The path is resolved component by component with directory descriptors and without letting the
kernel follow links, so concurrent changes of the directory cannot redirect it. This is openat2(2)
with RESOLVE_BENEATH, which Python does not offer.
"""

import errno
import os
from collections import deque
from pathlib import Path
from typing import Final

from attestkit._system.untrusted_files import o_path_flag, read_regular

_MOST_LINKS: Final = 8  # in one path; Kubernetes uses two
_DEEPEST: Final = 16  # directories in one path, each of which is kept open
_OUT: Final = "symbolic link leaves its directory"
_LONG: Final = "too many symbolic links or directories"
_FOLDER: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def read_beneath(folder: Path, name: str, most: int) -> bytes:
    """Return the content of a regular file.

    Args:
        folder: The directory; it may be a symbolic link.
        name: The name in `folder` of the file, or of a symbolic link to a file beneath `folder`.
        most: Read at most this many bytes.

    Raises:
        OSError: If the file cannot be read or is not a regular file. errno is ELOOP if a link is
            absolute or leaves the directory, or the path has too many links or directories.
        UnsupportedError: If the system is not Linux.
    """
    folders = [os.open(folder, o_path_flag() | os.O_DIRECTORY | os.O_CLOEXEC)]
    try:
        last = _resolve(folders, name)
        # read_regular refuses the last component if it has become a link.
        return read_regular(f"/proc/self/fd/{folders[-1]}/{last}", most)
    finally:
        for fd in folders:
            os.close(fd)


def _resolve(folders: list[int], name: str) -> str:
    """Open the directory of the file, and return the name of the file in it.

    `folders` is a stack of descriptors; `..` pops it instead of following the file system, where a
    directory may have been moved.
    """
    links = 0
    parts = deque([name])
    while parts:
        part = parts.popleft()
        if part in {"", "."}:
            continue
        if part == "..":
            if len(folders) == 1:
                raise OSError(errno.ELOOP, _OUT)
            os.close(folders.pop())
            continue
        target = _link_target(part, folders[-1])
        if target is not None:
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, _LONG)
            if target.startswith("/"):
                raise OSError(errno.ELOOP, _OUT)
            parts.extendleft(reversed(target.split("/")))
        elif not parts:
            return part
        elif len(folders) > _DEEPEST:
            raise OSError(errno.ELOOP, _LONG)
        else:
            folders.append(os.open(part, o_path_flag() | _FOLDER, dir_fd=folders[-1]))
    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))


def _link_target(name: str, folder: int) -> str | None:
    """Return the target of a symbolic link, or None for any other file."""
    try:
        return os.readlink(name, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None
        raise
