"""Boot log of the firmware from Linux: the ACPI table CCEL and the log area that it describes.

Sources: ACPI specification 6.5, section 5.2.34 (CCEL); drivers/acpi/sysfs.c of Linux 6.4 and later.
The area is read whole, including its padding, and not parsed.
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

# Signature, length of the table, CC type, log area minimum length (LAML) and start (LASA).
_TABLE: Final = Struct("<4sI28xB3xQQ")
_CC_TYPES: Final = {0: "reserved", 1: "AMD SEV", 2: "Intel TDX"}
_TDX: Final = 2
_LARGEST: Final = 16 << 20  # bytes of a log area; firmware reserves 64 KiB to 1 MiB
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})


def read_boot_log(paths: KernelPaths, *, calls: DeviceCalls = REAL_CALLS) -> bytes:
    """Return the whole log area; empty if the firmware has no log.

    Args:
        paths: The paths of table and area; `ccel_file` is used instead if it is set.
        calls: The system calls.

    Raises:
        BackendUnavailableError: If the log exists but is not accessible.
        BackendError: If the table is malformed, not of a TDX guest, or does not match its area.
    """
    if paths.ccel_file is not None:
        return _read_copy(paths.ccel_file, calls)
    try:
        table = read_file(paths.ccel_table, _TABLE.size, calls=calls)
    except OSError as error:
        if error.errno in _NOT_THERE:
            _check_not_masked(paths.ccel_table, error)
            return b""
        raise _read_error(paths.ccel_table, error) from error
    size = _check_table(paths.ccel_table, table)
    try:
        area = read_file(paths.ccel_data, size, calls=calls)
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise BackendUnavailableError(
                f"boot log: {paths.ccel_data} does not exist ({error_name(error)}), but the "
                f"firmware has a log of {size} bytes; use Linux 6.4 or later, or set "
                "DSTACK_CCEL_FILE to a copy of the log",
                reason="missing",
                path=str(paths.ccel_data),
            ) from error
        raise _read_error(paths.ccel_data, error) from error
    if len(area) != size:
        raise BackendError(
            f"boot log {paths.ccel_data}: wrong size: {_shown_size(area, size)} bytes, {size} in "
            "its table",
            reason="malformed_response",
            path=str(paths.ccel_data),
        )
    return area


def _read_copy(path: Path, calls: DeviceCalls) -> bytes:
    try:
        area = read_file(path, _LARGEST, calls=calls)
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise BackendUnavailableError(
                f"boot log: {path} does not exist ({error_name(error)}); correct or unset "
                "DSTACK_CCEL_FILE",
                reason="missing",
                path=str(path),
            ) from error
        raise _read_error(path, error) from error
    if not area:
        raise BackendError(
            f"boot log {path}: empty; correct or unset DSTACK_CCEL_FILE",
            reason="truncated",
            path=str(path),
        )
    if len(area) > _LARGEST:
        raise BackendError(
            f"boot log {path}: more than {_LARGEST} bytes; correct or unset DSTACK_CCEL_FILE",
            reason="too_large",
            path=str(path),
        )
    return area


def _read_error(path: Path, error: OSError) -> BackendError:
    text = f"boot log {path}: cannot be read: {error_name(error)}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return BackendUnavailableError(
            f"{text}: {permissions(path)}; run as root, or grant this user read access",
            reason="permission_denied",
            path=str(path),
        )
    return BackendError(text, reason="io_error", path=str(path))


def _check_not_masked(table: Path, error: OSError) -> None:
    """Raise if /sys/firmware is empty: a container masks it, and there may be a log."""
    if len(table.parents) < 3:
        return
    firmware = table.parents[2]
    try:
        masked = not any(firmware.iterdir())
    except OSError:
        return
    if masked:
        raise BackendUnavailableError(
            f"boot log: {firmware} is empty, as in a container that masks it; bind-mount "
            f"{table.parents[1]} read-only from the host, or set DSTACK_CCEL_FILE to a copy of the "
            "log",
            reason="missing",
            path=str(firmware),
        ) from error


def _check_table(path: Path, table: bytes) -> int:
    """Return the size of the log area in bytes; raise BackendError if the table is invalid."""
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
        name = _CC_TYPES.get(kind, "unknown")
        raise BackendError(
            f"CCEL table {path}: wrong CC type (byte 36): {kind} ({name}), expected {_TDX} "
            "(Intel TDX)",
            reason="wrong_platform",
            path=str(path),
        )
    if not size or not start:
        raise _malformed(path, f"no log area: length {size} (byte 40), start {start:#x} (byte 48)")
    if size > _LARGEST:
        raise BackendError(
            f"CCEL table {path}: log area too large (byte 40): {size} bytes, the limit is "
            f"{_LARGEST}",
            reason="too_large",
            path=str(path),
        )
    return int(size)


def _malformed(path: Path, text: str) -> BackendError:
    return BackendError(f"CCEL table {path}: {text}", reason="malformed_response", path=str(path))


def _shown_size(data: bytes, limit: int) -> str:
    """Return the number of bytes as text; reading stops one byte above the limit."""
    return f"more than {limit}" if len(data) > limit else str(len(data))
