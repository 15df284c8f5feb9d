"""File operations on configfs-tsm, and the meanings of their errors.

Sources: drivers/virt/coco of Linux (tsm, tdx-guest, sev-guest), fs/configfs, and mkdir(2). A read
or write opens the file, transfers it completely and closes it: configfs commits a write at `close`,
and caches a read per descriptor. Calls that may wait for the host release the GIL and are not
retried after a signal.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from attestkit._system.clock import current_time
from attestkit.backends.linux import device_errors, syscalls
from attestkit.backends.linux.device_errors import (
    ABSENT,
    INTERRUPTED,
    OUT_OF_MEMORY,
    UNKNOWN,
    Meaning,
    busy,
    error_name,
    failed,
    no_quote,
    permissions,
    unavailable,
)
from attestkit.errors import AttestKitError, UsageError


class Step(Enum):
    """Kind of operation on an entry of configfs-tsm; the meaning of an errno depends on it."""

    ANY = "any"  # one without meanings of its own
    MAKE = "make"  # create the entry
    IDENTIFY = "identify"  # read `provider` for the first time
    REPORT_DATA = "report_data"  # write `inblob`
    OPTION = "option"  # write an option such as `privlevel`
    REPORT = "report"  # read `outblob`, `auxblob` or `manifestblob`


_Meanings = dict[int, Meaning]

_MODPROBE: Final = "modprobe tdx-guest, or on AMD modprobe sev-guest"
_BIND: Final = "in a container, bind-mount /sys/kernel/config of the machine read-write"
_LOG: Final = "see the kernel log (dmesg)"
_DO_NOT_RETRY: Final = (
    "do not retry: the driver wipes its key (VMPCK) after most failures, and every further request "
    "fails; another process may try once, and if that fails, reboot the guest"
)
_KEY_LOST: Final = (
    "the driver has wiped its key (VMPCK) after an earlier failure; reboot the guest, or load "
    "sev-guest with another key (parameter vmpck_id)"
)
_PENDING: Final = "the host has not answered an earlier request yet; retry later"
_NO_ANSWER: Final = "the host failed to create a quote, or did not answer within 30 s"
_REJECTED: Final = "the host or the secure processor rejected the request"
_PRIVLEVEL: Final = "above VMPL 0, use the option privlevel"
_QGS: Final = "check on the host that the quoting service (QGS) runs and the VMM can connect to it"


_DENIED: Final = "run as root (a container or a security module (LSM) can also deny it to root)"


def _denied(what: str) -> _Meanings:
    text = f"{what}: {{permissions}}; {_DENIED}"
    return dict.fromkeys((errno.EACCES, errno.EPERM), (unavailable, "permission_denied", text))


_COMMON: Final[_Meanings] = {
    errno.ENXIO: (unavailable, "missing", f"the TEE driver was unloaded; {_MODPROBE}"),
    errno.ENOENT: (failed, "missing", "another process removed the entry; retry"),
    **_denied("no permission"),
    errno.EROFS: (unavailable, "permission_denied", f"configfs is mounted read-only; {_BIND}"),
    errno.EBUSY: (busy, "device", "in use; retry"),
    errno.EINTR: (busy, "interrupted", "interrupted by a signal; retry"),
    errno.ENOMEM: OUT_OF_MEMORY,
    errno.EAGAIN: (failed, "io_error", "an internal error code, which is a kernel bug; retry"),
    errno.EMFILE: (failed, "io_error", "too many open files; raise ulimit -n"),
    errno.ENFILE: (failed, "io_error", "too many open files; close some"),
}
_OF_STEP: Final[dict[Step, _Meanings]] = {
    Step.MAKE: {
        errno.ENXIO: (unavailable, "missing", f"no TEE driver is registered; {_MODPROBE}"),
        **_denied("no permission to create an entry"),
        errno.EEXIST: (failed, "io_error", "all random names are taken; remove entries with rmdir"),
    },
    Step.IDENTIFY: {
        errno.ENOENT: (unavailable, "missing", "no such file in a new entry; mount configfs")
    },
    Step.REPORT_DATA: {
        errno.EFBIG: (failed, "io_error", "64 bytes rejected; check that this is configfs-tsm")
    },
    Step.REPORT: {
        errno.EBUSY: (busy, "request_in_flight", _PENDING),
        errno.EINTR: INTERRUPTED,
        errno.EFBIG: (failed, "too_large", "longer than this kernel allows; update it"),
    },
}
_OF_REPORT: Final[dict[str, _Meanings]] = {
    "tdx": {
        errno.EINVAL: (failed, "io_error", f"the driver rejected the report data; {_LOG}"),
        errno.ETIMEDOUT: (no_quote, "timed_out", f"the host did not answer in time; {_QGS}"),
        errno.EIO: (no_quote, "quoting_service", f"{_NO_ANSWER}; {_QGS}"),
    },
    "snp": {
        errno.EINVAL: (failed, "io_error", f"request rejected; {_PRIVLEVEL}"),
        errno.ETIMEDOUT: (no_quote, "timed_out", f"throttled for 60 s; {_DO_NOT_RETRY}"),
        errno.EIO: (no_quote, "request_failed", f"{_REJECTED}; {_DO_NOT_RETRY}"),
        errno.ENOTTY: (no_quote, "key_lost", _KEY_LOST),
        errno.ENXIO: (unavailable, "missing", f"{_REJECTED}, or sev-guest was unloaded; {_LOG}"),
    },
}

# Errnos for a configured entry that does not exist.
_NOT_THERE: Final = ABSENT | {errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR}


def translate_error(
    step: Step,
    error: OSError,
    path: str,
    platform: str = "",
    permissions: Callable[[str], str] = permissions,
) -> AttestKitError:
    """Return the AttestKitError for an OSError at `step`.

    Args:
        step: The operation that failed.
        error: The OSError of that operation.
        path: The file or entry.
        platform: "tdx", "snp", or "" if it is not known yet.
        permissions: Returns a text with mode and owner of a path, and the user of this process.
    """
    number = error.errno or 0
    if step is Step.OPTION and number == errno.EINVAL:
        text = f"{path}: value out of range for this guest; use another value ({error_name(error)})"
        return UsageError(text, reason="out_of_range")
    of_report = _OF_REPORT.get(platform, {}) if step is Step.REPORT else {}
    meanings = {**_COMMON, **_OF_STEP.get(step, {}), **of_report}
    make, reason, text = meanings.get(number, UNKNOWN)
    if "{permissions}" in text:
        text = text.format(permissions=permissions(path))
    return make(path, f"{text} ({error_name(error)})", reason)


def folder_missing_error(error: OSError, folder: str, *, mounted: bool) -> AttestKitError:
    """Return the error for a missing report directory, `folder`; `mounted`: configfs is mounted.

    `error` is the OSError of using the directory.
    """
    if mounted:
        text = (
            "kernel module not loaded; modprobe tsm_report (Linux 6.7 to 6.15: tsm), then "
            "tdx-guest, or on AMD sev-guest"
        )
    else:
        text = f"configfs is not mounted; mount -t configfs none /sys/kernel/config; {_BIND}"
    return unavailable(folder, f"{text} ({error_name(error)})", "missing")


def entry_missing_error(error: OSError, path: str) -> AttestKitError | None:
    """Return the error for a configured entry, at `path`, that does not exist.

    None if `error` has another errno.
    """
    if error.errno not in _NOT_THERE:
        return None
    text = "no such report entry; create it, or correct or unset DCAP_TDX_QUOTE_CONFIGFS_PATH"
    return unavailable(path, f"{text} ({error_name(error)})", "missing")


_CHUNK: Final = 1 << 16  # bytes per read: larger than current reports, so two reads suffice


class DirectoryEntry(NamedTuple):
    """An entry of a directory, with its modification time."""

    name: str
    made_at: float  # Unix time of the last modification


class OsFiles:
    """File operations on the report directory; failures are OSErrors. Tests replace them."""

    def make(self, path: str) -> None:
        """Create the directory `path`."""
        os.mkdir(path)  # noqa: PTH102 - called for every quote; Path is slower than mkdir

    def write(self, path: str, data: bytes) -> None:
        """Write `data`, at least one byte, to the existing file `path`."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            while data:
                written = syscalls.write(fd, data)
                if not 0 < written <= len(data):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                data = data[written:]
        finally:
            os.close(fd)

    def read(self, path: str, limit: int) -> bytes:
        """Return at most the first `limit` + 1 bytes of the file `path`.

        A result of `limit` + 1 bytes means that the file is longer than `limit`.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = syscalls.read(fd, min(limit + 1, _CHUNK))
            more = found
            while more and len(found) <= limit:
                more = syscalls.read(fd, min(limit + 1 - len(found), _CHUNK))
                found += more
            return found
        finally:
            os.close(fd)

    def list(self, path: str) -> list[DirectoryEntry]:
        """Return the entries of the directory `path`, in no order."""
        found = []
        with os.scandir(path) as entries:
            for entry in entries:
                try:
                    made_at = entry.stat(follow_symlinks=False).st_mtime
                except FileNotFoundError:  # removed since scandir
                    continue
                found.append(DirectoryEntry(entry.name, made_at))
        return found

    def remove(self, path: str) -> None:
        """Remove the entry directory `path`; the kernel removes the files in it."""
        os.rmdir(path)  # noqa: PTH106 - as `make`


def _alive(pid: int) -> bool:
    """Return whether the process exists in this PID namespace; True if unknown."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # EPERM: the process of another user
        return True
    return True


def _try_lock(path: str) -> Callable[[], None] | None:
    """Lock the file `path` by flock, as Intel's library does; return the unlock function.

    Return None, without waiting, if another process has locked the file.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return lambda: os.close(fd)  # without a write, closing does not commit anything


class TsmSystem(NamedTuple):
    """File operations, clocks and process information for requests; tests replace them."""

    files: OsFiles = OsFiles()
    clock: Callable[[], float] = time.monotonic  # seconds, for timeouts
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = current_time  # seconds since 1970, for the age of an entry
    random: Callable[[int], bytes] = os.urandom
    pid: Callable[[], int] = os.getpid  # called for every request, because of forks
    alive: Callable[[int], bool] = _alive
    permissions: Callable[[str], str] = device_errors.permissions
    # Locks the file at a path; returns the unlock function, or None if it is locked already.
    try_lock: Callable[[str], Callable[[], None] | None] = _try_lock
