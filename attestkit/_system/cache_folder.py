"""A folder of cached files, private to its user, with a limit of the files of each kind.

The first line of a file is the SHA-256 of the rest, in hex.
"""

import errno
import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from re import Pattern
from typing import TYPE_CHECKING, Final

from attestkit._system.atomic_file import replace_file
from attestkit._system.untrusted_files import make_folder, make_private
from attestkit.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import ConfigReason

MAX_TEMPORARY: Final = 16
"""Maximum number of temporary files: of writers that are active or were killed."""

_NOT_OWNED: Final = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP})  # of another user


def open_cache_folder(folder: str | os.PathLike[str]) -> Path:
    """Create a folder with its parents if it is missing, and set its mode to 0700.

    Raises:
        ConfigError: If it cannot be created, or belongs to another user.
    """
    path = Path(folder).absolute()
    try:
        make_folder(path)
        make_private(path)
    except OSError as error:
        reason: ConfigReason = "permissions" if error.errno in _NOT_OWNED else "unwritable"
        text = f"cache folder {path}: {error.strerror or error}; make it writable, or use another"
        raise ConfigError(text, reason=reason) from error
    return path


def write_cache_file(path: Path, content: bytes, limits: Mapping[Pattern[str], int]) -> None:
    """Write a file atomically, and remove the oldest files over the limits.

    Args:
        path: Path of the file.
        content: Content of the file.
        limits: Maximum numbers of files, by patterns of their whole names.

    Raises:
        OSError: If the folder cannot be written or read.
    """
    replace_file(path, content, mode=0o600)
    with os.scandir(path.parent) as found:
        names = [entry.name for entry in found]
    for pattern, limit in limits.items():
        ours = [path.parent / name for name in names if pattern.fullmatch(name)]
        if len(ours) > limit:
            for old in sorted(ours, key=_age_order)[:-limit]:
                with suppress(OSError):  # removed by another process
                    old.unlink()


def add_checksum(content: bytes) -> bytes:
    """Return a line with the SHA-256 (hex) of `content`, followed by `content`."""
    return hashlib.sha256(content).hexdigest().encode("ascii") + b"\n" + content


def remove_checksum(data: bytes) -> bytes:
    """Return the content in `data`, the result of `add_checksum`, without its first line.

    Raises:
        FormatError: If the line is not the SHA-256 of the rest.
    """
    checksum, _, content = data.partition(b"\n")
    if checksum != hashlib.sha256(content).hexdigest().encode("ascii"):
        raise FormatError("cache file: checksum mismatch", reason="inconsistent")
    return content


def _age_order(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0
