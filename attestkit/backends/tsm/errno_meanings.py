"""What each errno of configfs-tsm means, and what to do about it.

Sources: the kernel's drivers/virt/coco (tsm and its report core, tdx-guest, sev-guest) and
fs/configfs; for the folder itself mkdir(2).
"""

import errno
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from attestkit.backends.linux.syscalls import error_name
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)

__all__ = ["Step", "Where", "folder_missing", "named_entry_missing", "refusal"]


class Step(Enum):
    """What was being done."""

    ANY = "any"
    MAKE = "make"  # the entry
    IDENTIFY = "identify"  # whose it is, read for the first time
    REPORT_DATA = "report_data"  # written to inblob
    OPTION = "option"  # privlevel and the like, written
    REPORT = "report"  # outblob, or what belongs to it, read


class Where(NamedTuple):
    """Which file it was, and who asked."""

    path: str
    platform: str  # "tdx", "snp", or "" while that is not known
    permissions: Callable[[str], str]  # says of a path who may use it, and who we are


_Row = tuple[type[AttestKitError], str]
_Key = tuple[Step, str, int]

_LSM: Final = "a container or a security module (LSM) can refuse root too"
_PERMISSION: Final[_Row] = (
    BackendUnavailableError,
    f"no permission, which root has by default: {{permissions}}; {_LSM}",
)
_NO_ENTRY: Final[_Row] = (
    BackendUnavailableError,
    f"it is there, but no permission to make an entry in it, as root has: {{permissions}}; {_LSM}",
)
_BIND: Final = "in a container bind-mount the machine's /sys/kernel/config read-write"
_READ_ONLY: Final[_Row] = (BackendUnavailableError, f"configfs is mounted read-only; {_BIND}")
_LOG: Final = "the kernel's log (dmesg) may say why"
_TOO_MANY_FILES: Final[_Row] = (
    BackendError,
    "too many files are open: close some, or raise ulimit -n",
)
_ONE_MORE: Final = (
    "it is not tried again here: the driver wipes its key (VMPCK) after most failures, and every "
    "further request would fail; another process may try once, and when that fails reboot the guest"
)
_KEY_LOST: Final = (
    "the driver's key (VMPCK) was wiped after an earlier failure; only a reboot of the guest "
    "brings reports back, or another key (parameter vmpck_id) when sev-guest is loaded"
)
_QGS: Final = "see that the quoting service (QGS) runs on the host and that the VMM reaches it"

_ROWS: Final[dict[_Key, _Row]] = {
    (Step.MAKE, "", errno.ENXIO): (
        BackendUnavailableError,
        "no TEE driver is registered: modprobe tdx-guest, or on AMD modprobe sev-guest",
    ),
    (Step.MAKE, "", errno.EACCES): _NO_ENTRY,
    (Step.MAKE, "", errno.EPERM): _NO_ENTRY,
    (Step.MAKE, "", errno.EEXIST): (
        BackendError,
        "every name that was tried is taken, though they are random; see what is in the folder",
    ),
    (Step.IDENTIFY, "", errno.ENOENT): (
        BackendUnavailableError,
        "it did not come with the entry, so this is not configfs; is something else mounted there?",
    ),
    (Step.REPORT_DATA, "", errno.EFBIG): (
        BackendError,
        "the kernel does not take 64 bytes of report data; is this configfs-tsm?",
    ),
    (Step.OPTION, "", errno.EINVAL): (
        UsageError,
        "the kernel refuses this value: it is out of range here, choose another",
    ),
    (Step.REPORT, "tdx", errno.EINVAL): (
        BackendError,
        f"the driver or the TDX module refuses the report data; {_LOG}",
    ),
    (Step.REPORT, "snp", errno.EINVAL): (
        BackendError,
        "the report is refused; a guest above VMPL 0 has to name its level, option privlevel",
    ),
    (Step.REPORT, "", errno.EBUSY): (
        BackendBusyError,
        "an earlier request is still with the host, which has not answered it; try again later",
    ),
    (Step.REPORT, "", errno.EINTR): (
        BackendBusyError,
        "signals interrupt the wait for the host again and again; try again",
    ),
    (Step.REPORT, "", errno.EFBIG): (
        BackendError,
        "longer than this kernel lets through: a newer may let more, or the host lies about it",
    ),
    (Step.REPORT, "tdx", errno.ETIMEDOUT): (
        QuoteUnavailableError,
        f"the host did not answer in time; {_QGS}, then try again",
    ),
    (Step.REPORT, "tdx", errno.EIO): (
        QuoteUnavailableError,
        f"the host refused to make a quote, or did not answer within 30 s; {_QGS}",
    ),
    (Step.REPORT, "snp", errno.ETIMEDOUT): (
        QuoteUnavailableError,
        f"the host kept this guest's request back for 60 s (throttling); {_ONE_MORE}",
    ),
    (Step.REPORT, "snp", errno.EIO): (
        QuoteUnavailableError,
        f"the host or the secure processor refused the request; {_ONE_MORE}",
    ),
    (Step.REPORT, "snp", errno.ENOTTY): (
        QuoteUnavailableError,
        _KEY_LOST,
    ),
    (Step.REPORT, "snp", errno.ENXIO): (
        BackendUnavailableError,
        f"the secure processor refused, or sev-guest was unloaded; {_LOG}",
    ),
    (Step.ANY, "", errno.ENXIO): (
        BackendUnavailableError,
        "the TEE driver was unloaded: modprobe tdx-guest, or on AMD modprobe sev-guest",
    ),
    (Step.ANY, "", errno.ENOENT): (
        BackendError,
        "it is gone: somebody removed the entry while it was in use; try again",
    ),
    (Step.ANY, "", errno.EACCES): _PERMISSION,
    (Step.ANY, "", errno.EPERM): _PERMISSION,
    (Step.ANY, "", errno.EROFS): _READ_ONLY,
    (Step.ANY, "", errno.EBUSY): (BackendBusyError, "it is in use; try again"),
    (Step.ANY, "", errno.EINTR): (BackendBusyError, "a signal came in between; try again"),
    (Step.ANY, "", errno.ENOMEM): (BackendError, "the kernel is out of memory; free some"),
    (Step.ANY, "", errno.EAGAIN): (
        BackendError,
        "the kernel lets out what it says to itself only, a defect of this kernel; try again",
    ),
    (Step.ANY, "", errno.EMFILE): _TOO_MANY_FILES,
    (Step.ANY, "", errno.ENFILE): _TOO_MANY_FILES,
}
_UNKNOWN: Final[_Row] = (BackendError, f"the kernel refuses; {_LOG}")

# What says of a named entry that it is none.
_NOT_THERE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR}
)


def refusal(step: Step, error: OSError, where: Where) -> AttestKitError:
    """Return the error that says what `error` means at this step."""
    number = error.errno or 0
    row = _UNKNOWN
    for key in ((step, where.platform, number), (step, "", number), (Step.ANY, "", number)):
        if key in _ROWS:
            row = _ROWS[key]
            break
    kind, text = row
    if "{permissions}" in text:
        text = text.format(permissions=where.permissions(where.path))
    return kind(f"{where.path}: {text} ({error_name(error)})")


def folder_missing(error: OSError, folder: str, *, mounted: bool) -> AttestKitError:
    """Return what to say where the report folder is not; `mounted`: there is a configfs at all."""
    if mounted:
        text = (
            "the kernel's module is not loaded: modprobe tsm_report (before Linux 6.16 modprobe "
            "tsm, which 6.7 was the first to have), then tdx-guest, or on AMD sev-guest"
        )
    else:
        text = f"configfs is not mounted: mount -t configfs none /sys/kernel/config; {_BIND}"
    return BackendUnavailableError(f"{folder}: {text} ({error_name(error)})")


def named_entry_missing(error: OSError, path: str) -> AttestKitError | None:
    """Return what to say if `error` means that a named entry is none; else None."""
    if error.errno not in _NOT_THERE:
        return None
    return BackendUnavailableError(
        f"{path}: the report entry that was named (DCAP_TDX_QUOTE_CONFIGFS_PATH) is not there, and "
        f"no other is made in its place; make it, or name none ({error_name(error)})"
    )
