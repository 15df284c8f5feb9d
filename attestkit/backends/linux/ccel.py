"""The firmware's event log, as Linux shows it: an ACPI table that describes an area, and the area.

Source: the ACPI specification 6.5, section 5.2.34 (CCEL); Linux' drivers/acpi/sysfs.c, which shows
the area since 6.4. It is read whole, with its fill; nothing of it is parsed here.
"""

import errno
from pathlib import Path
from struct import Struct
from typing import Final

from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import (
    REAL_CALLS,
    DeviceCalls,
    error_name,
    permissions,
    read_file,
)
from attestkit.errors import BackendError, BackendUnavailableError

__all__ = ["read_boot_log"]

# Signature, length of the table, cc type, log area minimum length and start.
_TABLE: Final = Struct("<4sI28xB3xQQ")
_CC_TYPES: Final = {0: "reserved", 1: "AMD SEV", 2: "Intel TDX"}
_TDX: Final = 2
_LARGEST: Final = 16 << 20  # bytes of an area; firmware makes 64 KiB to 1 MiB
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})


def read_boot_log(paths: KernelPaths, *, calls: DeviceCalls = REAL_CALLS) -> bytes:
    """Return the whole log area; empty if the firmware made no log.

    Args:
        paths: Where table and area are; or a copy of the area, `ccel_file`, in place of both.
        calls: The system calls.

    Raises:
        BackendUnavailableError: There is a log, and it cannot be read here.
        BackendError: The table is not that of a TDX guest, or does not fit its area.
    """
    if paths.ccel_file is not None:
        return _copy(paths.ccel_file, calls)
    try:
        table = read_file(paths.ccel_table, _TABLE.size, calls=calls)
    except OSError as error:
        if error.errno in _NOT_THERE:
            _check_not_masked(paths.ccel_table, error)
            return b""
        raise _unreadable(paths.ccel_table, error) from error
    size = _check_table(paths.ccel_table, table)
    try:
        area = read_file(paths.ccel_data, size, calls=calls)
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise BackendUnavailableError(
                f"the firmware wrote a log of {size} bytes, and the kernel does not show it: "
                f"there is no {paths.ccel_data} ({error_name(error)}); Linux 6.4 or later is "
                "needed, or a copy of the log named by DSTACK_CCEL_FILE"
            ) from error
        raise _unreadable(paths.ccel_data, error) from error
    if len(area) != size:
        raise BackendError(
            f"{paths.ccel_data} has {_count(area, size)} bytes, its table says {size}"
        )
    return area


def _copy(path: Path, calls: DeviceCalls) -> bytes:
    try:
        area = read_file(path, _LARGEST, calls=calls)
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise BackendUnavailableError(
                f"there is no {path} ({error_name(error)}); it was chosen by name "
                "(DSTACK_CCEL_FILE), so nothing else is tried"
            ) from error
        raise _unreadable(path, error) from error
    if not area:
        raise BackendError(f"{path}, which was chosen as the firmware's log, is empty")
    if len(area) > _LARGEST:
        raise BackendError(f"{path} has more than {_LARGEST} bytes: that is no firmware's log")
    return area


def _unreadable(path: Path, error: OSError) -> BackendError:
    said = f"the firmware's log cannot be read: {path}: {error_name(error)}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return BackendUnavailableError(f"{said}: {permissions(path)}; only root may by default")
    return BackendError(said)


def _check_not_masked(table: Path, error: OSError) -> None:
    """Refuse an empty /sys/firmware: there a container hides the table, if there is one."""
    if len(table.parents) < 3:
        return
    firmware = table.parents[2]
    try:
        masked = not any(firmware.iterdir())
    except OSError:
        return
    if masked:
        raise BackendUnavailableError(
            f"{firmware} is empty, as in a container that hides it, so nobody can tell if the "
            f"firmware wrote a log: bind-mount {table.parents[1]} read-only from the host, or "
            "name a copy of the log by DSTACK_CCEL_FILE"
        ) from error


def _check_table(path: Path, table: bytes) -> int:
    """Return the size of the area in bytes; BackendError if the table does not describe one."""
    if len(table) != _TABLE.size:
        found = _count(table, _TABLE.size)
        raise BackendError(f"{path} has {found} bytes, a CCEL table has {_TABLE.size}")
    signature, length, kind, size, start = _TABLE.unpack(table)
    if signature != b"CCEL":
        raise BackendError(f"{path} begins with {signature!r}, not CCEL")
    if length != _TABLE.size:
        raise BackendError(f"{path} says that it has {length} bytes (byte 4), not {_TABLE.size}")
    if sum(table) % 256:
        raise BackendError(f"{path}: its bytes do not add up to 0, as the checksum (byte 9) wants")
    if kind != _TDX:
        name = _CC_TYPES.get(kind, "not known")
        raise BackendError(f"{path} is of CC type {kind} (byte 36), which is {name}, not Intel TDX")
    if not size or not start:
        raise BackendError(f"{path} names no log area: length {size}, start {start:#x}")
    if size > _LARGEST:
        raise BackendError(f"{path} names a log area of {size} bytes (byte 40), over {_LARGEST}")
    return int(size)


def _count(data: bytes, limit: int) -> str:
    """Return how many bytes were read, for people: reading stops just above the limit."""
    return f"more than {limit}" if len(data) > limit else str(len(data))
