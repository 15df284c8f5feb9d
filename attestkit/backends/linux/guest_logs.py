"""Logs of a guest on Linux: the firmware's boot log, and the runtime log of this boot.

The boot log is described by the ACPI table CCEL (ACPI specification 6.5, section 5.2.34;
drivers/acpi/sysfs.c of Linux 6.4 and later). Its area is read whole, including its padding, and not
parsed. The register of the runtime log is provided by the caller.
"""

import os
import re
import threading
from pathlib import Path
from struct import Struct
from typing import Final

from attestkit.backends.linux.device_errors import (
    ABSENT,
    access_error,
    error_name,
    failed,
    unavailable,
)
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, read_file
from attestkit.errors import BackendError, UsageError
from attestkit.event_log.journal import LOCK, Journal, RegisterAccess, RuntimeLog
from attestkit.event_log.journal_files import OsFolder

# Signature, length of the table, CC type, log area minimum length (LAML) and start (LASA).
_TABLE: Final = Struct("<4sI28xB3xQQ")
_CC_TYPES: Final = {0: "reserved", 1: "AMD SEV", 2: "Intel TDX"}
_TDX: Final = 2
_LARGEST: Final = 16 << 20  # bytes of a log area; firmware reserves 64 KiB to 1 MiB
_UNREADABLE: Final = "boot log: cannot be read"
_COPY: Final = "correct or unset DSTACK_CCEL_FILE"


def read_boot_log(paths: KernelPaths, *, calls: DeviceCalls = REAL_CALLS) -> bytes:
    """Return the firmware's boot log: the whole CCEL area, with its padding; empty without a log.

    Args:
        paths: The paths of table and area; `ccel_file` is used instead if it is set.
        calls: The system calls.

    Raises:
        BackendUnavailableError: If the log exists but is not accessible, `ccel_file` is missing, or
            /sys/firmware is empty, as in a container.
        BackendError: If a file cannot be read for another reason; if the table is malformed or not
            of a TDX guest; if the log does not have the size in the table, or has more than 16 MiB;
            or if `ccel_file` is empty.
    """
    if paths.ccel_file is not None:
        return _read_copy(paths.ccel_file, calls)
    try:
        table = read_file(paths.ccel_table, _TABLE.size, calls=calls)
    except OSError as error:
        if error.errno not in ABSENT:
            raise _read_error(paths.ccel_table, error) from error
        _check_not_masked(paths.ccel_table, error)
        return b""
    size = _check_table(paths.ccel_table, table)
    missing = (
        f"the firmware has a log of {size} bytes; use Linux 6.4 or later, or set DSTACK_CCEL_FILE "
        "to a copy of the log"
    )
    area = _log_area(paths.ccel_data, size, missing, calls)
    if len(area) != size:
        found = _shown_size(area, size)
        raise _malformed(paths.ccel_data, f"wrong size: {found} bytes, its table says {size}")
    return area


def _read_copy(path: Path, calls: DeviceCalls) -> bytes:
    area = _log_area(path, _LARGEST, _COPY, calls)
    if not area:
        raise failed(path, f"boot log: empty; {_COPY}", "truncated")
    if len(area) > _LARGEST:
        raise failed(path, f"boot log: more than {_LARGEST} bytes; {_COPY}", "too_large")
    return area


def _log_area(path: Path, limit: int, missing: str, calls: DeviceCalls) -> bytes:
    """Return the file `path`, at most `limit` + 1 bytes of it.

    `missing` is the remedy in the error if the file is absent.
    """
    try:
        return read_file(path, limit, calls=calls)
    except OSError as error:
        if error.errno in ABSENT:
            text = f"boot log: does not exist ({error_name(error)}); {missing}"
            raise unavailable(path, text, "missing") from error
        raise _read_error(path, error) from error


def _read_error(path: Path, error: OSError) -> BackendError:
    return access_error(path, _UNREADABLE, error, "; run as root, or grant this user read access")


def _check_not_masked(table: Path, error: OSError) -> None:
    """Raise if /sys/firmware is empty: a container masks it, and there may be a log.

    Args:
        table: Path of the CCEL table, sys/firmware/acpi/tables/CCEL below a root.
        error: The OSError of reading the table, which becomes the cause.
    """
    if len(table.parents) < 3:
        return
    firmware = table.parents[2]
    try:
        masked = not any(firmware.iterdir())
    except OSError:
        return
    if masked:
        text = (
            f"boot log: the directory is empty, as in a container that masks it; bind-mount "
            f"{table.parents[1]} read-only from the host, or set DSTACK_CCEL_FILE to a copy"
        )
        raise unavailable(firmware, text, "missing") from error


def _check_table(path: Path, table: bytes) -> int:
    """Return the log area's size in bytes from `table`, the start of a CCEL table.

    If the table is invalid, raise BackendError, which names `path`.
    """
    if len(table) != _TABLE.size:
        found = _shown_size(table, _TABLE.size)
        raise _malformed(path, f"wrong size: {found} bytes, expected {_TABLE.size}")
    signature, length, kind, size, start = _TABLE.unpack(table)
    if signature != b"CCEL":
        raise _malformed(path, f"wrong signature (byte 0): {signature!r}")
    if length != _TABLE.size:
        raise _malformed(path, f"wrong length field (byte 4): {length}, expected {_TABLE.size}")
    if sum(table) % 256:
        raise _malformed(path, "wrong checksum (byte 9): the sum of all bytes is not 0 mod 256")
    if kind != _TDX:
        found = f"{kind} ({_CC_TYPES.get(kind, 'unknown')}), expected {_TDX} (Intel TDX)"
        raise failed(path, f"CCEL table: wrong CC type (byte 36): {found}", "wrong_platform")
    if not size or not start:
        raise _malformed(path, f"no log area: length {size} (byte 40), start {start:#x} (byte 48)")
    if size > _LARGEST:
        text = f"CCEL table: log area too large (byte 40): {size} bytes, the limit is {_LARGEST}"
        raise failed(path, text, "too_large")
    return int(size)


def _malformed(path: Path, text: str) -> BackendError:
    return failed(path, f"CCEL: {text}", "malformed_response")


def _shown_size(data: bytes, limit: int) -> str:
    """Return the size of `data` as text for an error; reading stops one byte above `limit`."""
    return f"more than {limit}" if len(data) > limit else str(len(data))


_BOOT_ID: Final = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n?", re.ASCII)
_BOOT_ID_SIZE: Final = 37  # bytes, its newline included


def read_boot_id(paths: KernelPaths, *, calls: DeviceCalls = REAL_CALLS) -> str:
    """Return the boot id of the kernel, a lower-case UUID, from the file `paths.boot_id`.

    Raises:
        BackendUnavailableError: If the file cannot be read.
        BackendError: If the file does not contain a UUID.
    """
    path = paths.boot_id
    try:
        data = read_file(path, _BOOT_ID_SIZE, calls=calls)
    except OSError as error:
        text = f"boot id: cannot be read ({error_name(error)}); check the mount of /proc"
        raise unavailable(path, text, "unreadable") from error
    if not _BOOT_ID.fullmatch(data):
        raise failed(path, f"boot id: must be a UUID, not {data[:16]!r}", "malformed_response")
    return data.decode().strip()


class GuestJournal:
    """Runtime log of the guest, created by the first `open`. Thread-safe, but not fork-safe.

    Args:
        paths: The kernel's paths.
        register: Functions that read and extend the register of the events.
        calls: The system calls.
    """

    def __init__(
        self, paths: KernelPaths, register: RegisterAccess, *, calls: DeviceCalls = REAL_CALLS
    ) -> None:
        self._paths = paths
        self._register = register
        self._calls = calls
        self._process = os.getpid()
        self._mutex = threading.Lock()
        self._journal: Journal | None = None
        self._closed = False

    def open(self, version: int | None = None) -> RuntimeLog:
        """Return the log of runtime events of this boot; every call returns the same object.

        Args:
            version: How event digests are computed, 1 or 2 (see `runtime_preimage`). None: as
                those of this boot's events, or 1 if there are none. Only the first call uses this
                argument; it creates the log.

        Raises:
            UsageError: If this object is closed or was created before a fork.
            BackendError: If the boot id cannot be read or is malformed.
        """
        if self._process != os.getpid():  # a child process would share the lock
            text = "journal: not usable after a fork; create another backend"
            raise UsageError(text, reason="wrong_process")
        with self._mutex:
            if self._closed:
                raise UsageError("backend: it is closed; open another", reason="closed")
            if self._journal is None:
                folder = OsFolder(self._paths.runtime_log, LOCK)
                boot_id = read_boot_id(self._paths, calls=self._calls)
                self._journal = Journal(folder, self._register, boot_id=boot_id, version=version)
            return self._journal

    def close(self) -> None:
        """Close the log and release its lock. A second call, or one after a fork, has no effect."""
        if self._process != os.getpid():
            return  # the journal belongs to the parent process
        with self._mutex:
            self._closed = True
            journal, self._journal = self._journal, None
        if journal is not None:
            journal.close()
