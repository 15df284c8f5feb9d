"""Meanings and remedies of the errnos of configfs-tsm.

Sources: drivers/virt/coco of Linux (tsm, tdx-guest, sev-guest), fs/configfs, and mkdir(2).
"""

import errno
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from attestkit._reasons import BackendReason
from attestkit.backends.linux.syscalls import error_name
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)

__all__ = ["FailedFile", "Step", "entry_missing_error", "folder_missing_error", "translate_error"]


class Step(Enum):
    """The operation that failed."""

    ANY = "any"
    MAKE = "make"  # create the entry
    IDENTIFY = "identify"  # read `provider` for the first time
    REPORT_DATA = "report_data"  # write `inblob`
    OPTION = "option"  # write an option such as `privlevel`
    REPORT = "report"  # read `outblob`, `auxblob` or `manifestblob`


class FailedFile(NamedTuple):
    """The file of a failed operation."""

    path: str
    platform: str  # "tdx", "snp", or "" if it is not known yet
    permissions: Callable[[str], str]  # describes mode and owner of a path and this process


_Meaning = tuple[type[BackendError], BackendReason, str]  # with cause and remedy in words
_Key = tuple[Step, str, int]  # with the platform, or "" for every platform, and the errno

_LSM: Final = "a container or a security module (LSM) can also deny it to root"
_PERMISSION: Final[_Meaning] = (
    BackendUnavailableError,
    "permission_denied",
    f"no permission: {{permissions}}; run as root ({_LSM})",
)
_NO_ENTRY: Final[_Meaning] = (
    BackendUnavailableError,
    "permission_denied",
    f"no permission to create an entry: {{permissions}}; run as root ({_LSM})",
)
_BIND: Final = "in a container, bind-mount /sys/kernel/config of the machine read-write"
_READ_ONLY: Final[_Meaning] = (
    BackendUnavailableError,
    "permission_denied",
    f"configfs is mounted read-only; {_BIND}",
)
_LOG: Final = "see the kernel log (dmesg)"
_TOO_MANY_FILES: Final[_Meaning] = (
    BackendError,
    "io_error",
    "too many open files; close some, or raise ulimit -n",
)
_DO_NOT_RETRY: Final = (
    "do not retry: the driver wipes its key (VMPCK) after most failures, and every further request "
    "fails; another process may try once, and if that fails, reboot the guest"
)
_KEY_LOST: Final = (
    "the driver has wiped its key (VMPCK) after an earlier failure; reboot the guest, or load "
    "sev-guest with another key (parameter vmpck_id)"
)
_QGS: Final = "check on the host that the quoting service (QGS) runs and the VMM can connect to it"

_MEANINGS: Final[dict[_Key, _Meaning]] = {
    (Step.MAKE, "", errno.ENXIO): (
        BackendUnavailableError,
        "missing",
        "no TEE driver is registered; modprobe tdx-guest, or on AMD modprobe sev-guest",
    ),
    (Step.MAKE, "", errno.EACCES): _NO_ENTRY,
    (Step.MAKE, "", errno.EPERM): _NO_ENTRY,
    (Step.MAKE, "", errno.EEXIST): (
        BackendError,
        "io_error",
        "all random entry names are taken; remove stale entries with rmdir",
    ),
    (Step.IDENTIFY, "", errno.ENOENT): (
        BackendUnavailableError,
        "missing",
        "missing in a new entry; mount configfs, not another file system",
    ),
    (Step.REPORT_DATA, "", errno.EFBIG): (
        BackendError,
        "io_error",
        "the kernel rejected 64 bytes of report data; check that this is configfs-tsm",
    ),
    (Step.REPORT, "tdx", errno.EINVAL): (
        BackendError,
        "io_error",
        f"the driver or the TDX module rejected the report data; {_LOG}",
    ),
    (Step.REPORT, "snp", errno.EINVAL): (
        BackendError,
        "io_error",
        "the request was rejected; in a guest above VMPL 0, use the option privlevel",
    ),
    (Step.REPORT, "", errno.EBUSY): (
        BackendBusyError,
        "request_in_flight",
        "the host has not answered an earlier request yet; retry later",
    ),
    (Step.REPORT, "", errno.EINTR): (
        BackendBusyError,
        "interrupted",
        "interrupted by signals repeatedly; retry",
    ),
    (Step.REPORT, "", errno.EFBIG): (
        BackendError,
        "too_large",
        "longer than this kernel allows; update the kernel, or check the quote size on the host",
    ),
    (Step.REPORT, "tdx", errno.ETIMEDOUT): (
        QuoteUnavailableError,
        "timed_out",
        f"the host did not answer in time; {_QGS}, then retry",
    ),
    (Step.REPORT, "tdx", errno.EIO): (
        QuoteUnavailableError,
        "quoting_service",
        f"the host failed to create a quote, or did not answer within 30 s; {_QGS}",
    ),
    (Step.REPORT, "snp", errno.ETIMEDOUT): (
        QuoteUnavailableError,
        "timed_out",
        f"the host throttled the request for 60 s; {_DO_NOT_RETRY}",
    ),
    (Step.REPORT, "snp", errno.EIO): (
        QuoteUnavailableError,
        "request_failed",
        f"the host or the secure processor rejected the request; {_DO_NOT_RETRY}",
    ),
    (Step.REPORT, "snp", errno.ENOTTY): (
        QuoteUnavailableError,
        "key_lost",
        _KEY_LOST,
    ),
    (Step.REPORT, "snp", errno.ENXIO): (
        BackendUnavailableError,
        "missing",
        f"the secure processor rejected the request, or sev-guest was unloaded; {_LOG}",
    ),
    (Step.ANY, "", errno.ENXIO): (
        BackendUnavailableError,
        "missing",
        "the TEE driver was unloaded; modprobe tdx-guest, or on AMD modprobe sev-guest",
    ),
    (Step.ANY, "", errno.ENOENT): (
        BackendError,
        "missing",
        "another process removed the entry during the request; retry",
    ),
    (Step.ANY, "", errno.EACCES): _PERMISSION,
    (Step.ANY, "", errno.EPERM): _PERMISSION,
    (Step.ANY, "", errno.EROFS): _READ_ONLY,
    (Step.ANY, "", errno.EBUSY): (BackendBusyError, "device", "in use; retry"),
    (Step.ANY, "", errno.EINTR): (
        BackendBusyError,
        "interrupted",
        "interrupted by a signal; retry",
    ),
    (Step.ANY, "", errno.ENOMEM): (
        BackendError,
        "io_error",
        "the kernel is out of memory; free some and retry",
    ),
    (Step.ANY, "", errno.EAGAIN): (
        BackendError,
        "io_error",
        "an internal error code of the kernel, which is a kernel bug; retry",
    ),
    (Step.ANY, "", errno.EMFILE): _TOO_MANY_FILES,
    (Step.ANY, "", errno.ENFILE): _TOO_MANY_FILES,
}
_UNKNOWN: Final[_Meaning] = (BackendError, "io_error", f"undocumented error; {_LOG}")

# Errnos for a configured entry that does not exist.
_NOT_THERE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR}
)


def translate_error(step: Step, error: OSError, file: FailedFile) -> AttestKitError:
    """Return the AttestKitError for an OSError at `step`."""
    number = error.errno or 0
    if step is Step.OPTION and number == errno.EINVAL:
        text = f"{file.path}: value out of range here; use another ({error_name(error)})"
        return UsageError(text, reason="out_of_range")
    kind, reason, text = _UNKNOWN
    for key in ((step, file.platform, number), (step, "", number), (Step.ANY, "", number)):
        if key in _MEANINGS:
            kind, reason, text = _MEANINGS[key]
            break
    if "{permissions}" in text:
        text = text.format(permissions=file.permissions(file.path))
    text = f"{file.path}: {text} ({error_name(error)})"
    return kind(text, reason=reason, path=file.path)


def folder_missing_error(error: OSError, folder: str, *, mounted: bool) -> AttestKitError:
    """Return the error for a missing report directory; `mounted`: configfs is mounted."""
    if mounted:
        text = (
            "kernel module not loaded; modprobe tsm_report (Linux 6.7 to 6.15: tsm), then "
            "tdx-guest, or on AMD sev-guest"
        )
    else:
        text = f"configfs is not mounted; mount -t configfs none /sys/kernel/config; {_BIND}"
    return BackendUnavailableError(
        f"{folder}: {text} ({error_name(error)})", reason="missing", path=folder
    )


def entry_missing_error(error: OSError, path: str) -> AttestKitError | None:
    """Return the error for a configured entry that does not exist; None for other errnos."""
    if error.errno not in _NOT_THERE:
        return None
    return BackendUnavailableError(
        f"{path}: no such report entry; create it, or correct or unset "
        f"DCAP_TDX_QUOTE_CONFIGFS_PATH ({error_name(error)})",
        reason="missing",
        path=path,
    )
