"""Errors about files, devices and sockets, whose text begins with the path, their `path`.

`problem` is the rest of the text; `reason` is the stable word of the error.
"""

import errno
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from attestkit._outcomes.reasons import (
    BackendBusyReason,
    BackendReason,
    BackendUnavailableReason,
    QuoteUnavailableReason,
)
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
)

ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR})
DENIED: Final = frozenset({errno.EACCES, errno.EPERM})


def failed(path: object, problem: str, reason: BackendReason) -> BackendError:
    """Return the error for a device or file that returned an error or an invalid response.

    Its text is "`path`: `problem`", and `reason` a stable word for programs.
    """
    return BackendError(f"{path}: {problem}", reason=reason, path=str(path))


def unavailable(
    path: object, problem: str, reason: BackendUnavailableReason
) -> BackendUnavailableError:
    """Return the error for a device or file that is missing or not accessible.

    Its text is "`path`: `problem`", and `reason` a stable word for programs.
    """
    return BackendUnavailableError(f"{path}: {problem}", reason=reason, path=str(path))


def busy(path: object, problem: str, reason: BackendBusyReason) -> BackendBusyError:
    """Return the error for a device or file that another request uses.

    Its text is "`path`: `problem`", and `reason` a stable word for programs.
    """
    return BackendBusyError(f"{path}: {problem}", reason=reason, path=str(path))


def no_quote(path: object, problem: str, reason: QuoteUnavailableReason) -> QuoteUnavailableError:
    """Return the error for a platform that returned no quote; `path` is its device or file.

    Its text is "`path`: `problem`", and `reason` a stable word for programs.
    """
    return QuoteUnavailableError(f"{path}: {problem}", reason=reason, path=str(path))


# Meaning of an errno: error and reason, and texts of its cause and remedy.
Meaning = tuple[Callable[[object, str, Any], BackendError], BackendReason, str]

INTERRUPTED: Final[Meaning] = (busy, "interrupted", "interrupted repeatedly; retry")
OUT_OF_MEMORY: Final[Meaning] = (failed, "io_error", "the kernel is out of memory; retry")
_BY_POLICY: Final = "forbidden by a security policy (seccomp, LSM)"
FORBIDDEN_BY_POLICY: Final[Meaning] = (unavailable, "permission_denied", _BY_POLICY)
UNKNOWN: Final[Meaning] = (failed, "io_error", "undocumented error; see the kernel log")


def access_error(path: object, problem: str, error: OSError, remedy: str = "") -> BackendError:
    """Return the error for a file that cannot be opened, read or written.

    Its text is "`path`: `problem`" and the errno of `error`. If permission is denied or the file
    system is read-only, it is a BackendUnavailableError, whose text also has the file's permissions
    and `remedy`, with its own separator ("; run as root"). Otherwise it is a BackendError.
    """
    text = f"{problem} ({error_name(error)})"
    if error.errno in DENIED | {errno.EROFS}:
        return unavailable(path, f"{text}: {permissions(str(path))}{remedy}", "permission_denied")
    return failed(path, text, "io_error")


def translate_errno(
    path: object,
    problem: str,
    error: OSError,
    meanings: Mapping[int, Meaning],
    otherwise: Meaning = UNKNOWN,
) -> BackendError:
    """Return the error of an operation that failed with an OSError.

    Args:
        path: The file, device or socket.
        problem: What failed, such as "boot log: cannot be read".
        error: The OSError.
        meanings: For an errno: function that makes the error, reason, and text.
        otherwise: The same for any other errno.
    """
    make, reason, meaning = meanings.get(error.errno or 0, otherwise)
    return make(path, f"{problem} ({error_name(error)}): {meaning}", reason)


def error_name(error: OSError) -> str:
    """Return the symbol and the text of an errno: "EACCES, permission denied"."""
    number = error.errno or 0
    return f"{errno.errorcode.get(number, f'errno {number}')}, {os.strerror(number).lower()}"


def permissions(path: str | os.PathLike[str]) -> str:
    """Return text for an error: mode, owner, group of `path`; user and groups of this process.

    If the file has no status, the text has the error of stat instead.
    """
    groups = ",".join(map(str, sorted({os.getegid(), *os.getgroups()})))
    process = f"this process has uid {os.geteuid()}, groups {groups}"
    try:
        found = Path(path).stat()
    except OSError as error:
        return f"stat of {path} failed ({error_name(error)}); {process}"
    mode = stat.S_IMODE(found.st_mode)
    return f"{path} has mode {mode:04o}, owner uid {found.st_uid}, group {found.st_gid}; {process}"
