"""The TDX guest device of Linux: TD reports by ioctl, and the meaning of its errors.

Source: include/uapi/linux/tdx-guest.h and drivers/virt/coco/tdx-guest of Linux 6.2 and later. Older
drivers have other device names and use the same ioctl numbers differently; their nodes are reported
in errors, but not used.
"""

import errno
import hmac
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from attestkit._reasons import BackendReason
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, error_name, iowr, permissions
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    UsageError,
)

__all__ = ["GET_REPORT0", "Command", "Meaning", "TdxDevice", "find_meaning"]

REPORT_DATA_SIZE: Final = 64
REPORT_SIZE: Final = 1024
GET_REPORT0: Final = iowr("T", 1, REPORT_DATA_SIZE + REPORT_SIZE)

_TDX_REPORT: Final = 0x81  # byte 0 of a report: its type
_REPORT_DATA_AT: Final = 128  # in a report

# Waits in seconds between retries while the TDX module is busy.
BUSY_WAITS: Final = (0.001, 0.01, 0.05, 0.1, 0.2)

# An errno of the driver: class and reason of the error, and its cause and remedy in words.
Meaning = tuple[type[BackendError], BackendReason, str]
_FORBIDDEN_BY_POLICY: Final[Meaning] = (
    BackendUnavailableError,
    "permission_denied",
    "forbidden by a security policy (seccomp, LSM)",
)
_UNKNOWN: Final[Meaning] = (BackendError, "io_error", "undocumented error")
MEANINGS: Final[Mapping[int, Meaning]] = {
    errno.EFAULT: (BackendError, "io_error", "invalid buffer; report this bug to attestkit"),
    errno.ENOMEM: (BackendError, "io_error", "the kernel is out of memory; free some and retry"),
    errno.EINVAL: (
        BackendError,
        "io_error",
        "the TDX module rejected an operand; use a kernel that supports this module",
    ),
    errno.EBUSY: (BackendBusyError, "device", "the TDX module is busy; retry later"),
    errno.EINTR: (
        BackendBusyError,
        "interrupted",
        "interrupted by signals repeatedly; retry later",
    ),
    errno.EIO: (BackendError, "io_error", "the TDX module failed; see the kernel log (dmesg)"),
    errno.ENOTTY: (
        BackendUnavailableError,
        "unsupported_kernel",
        "the driver has no such command; use Linux 6.2 or later",
    ),
    errno.EPERM: _FORBIDDEN_BY_POLICY,
    errno.EACCES: _FORBIDDEN_BY_POLICY,
}

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class Command(NamedTuple):
    """An ioctl of the device, with its retries and errors."""

    name: str
    number: int
    meanings: Mapping[int, Meaning] = MEANINGS
    interruptions: int = 100  # retries after EINTR


_GET_REPORT0: Final = Command("GET_REPORT0", GET_REPORT0)


class TdxDevice:
    """`/dev/tdx_guest`, opened for each use.

    Args:
        path: The device node.
        old_nodes: Device nodes of older drivers, for the error if `path` is missing.
        calls: The system calls.
        sleep: Sleeps for the given number of seconds.
    """

    def __init__(
        self,
        path: Path,
        old_nodes: Iterable[Path] = (),
        *,
        calls: DeviceCalls = REAL_CALLS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.path = path
        self._old_nodes = tuple(old_nodes)
        self._calls = calls
        self._sleep = sleep

    @contextmanager
    def open(self) -> Iterator[int]:
        """Open the device; return a context manager with its descriptor.

        Raises:
            BackendUnavailableError: If the device is missing or not accessible.
            BackendError: If it cannot be opened for another reason.
        """
        try:
            fd = self._calls.open_file(self.path, os.O_RDWR, None)
        except OSError as error:
            raise self._open_error(error) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def _open_error(self, error: OSError) -> BackendError:
        path = str(self.path)
        text = f"{path}: cannot be opened ({error_name(error)})"
        if error.errno in _FORBIDDEN:
            return BackendUnavailableError(
                f"{text}: {permissions(path)}; grant access to a group by a udev rule, in a "
                "container also by its device rules",
                reason="permission_denied",
                path=path,
            )
        if error.errno not in _ABSENT:
            return BackendError(text, reason="io_error", path=path)
        for node in self._old_nodes:
            if _exists(node):
                return BackendUnavailableError(
                    f"{path}: driver too old, it has {node} ({error_name(error)}); use Linux 6.2 "
                    "or later",
                    reason="unsupported_kernel",
                    path=path,
                )
        return BackendUnavailableError(
            f"{text}; run on a TDX guest, load the driver (modprobe tdx-guest), or in a container "
            f"pass the device through (--device {path})",
            reason="missing",
            path=path,
        )

    def get_report(self, report_data: bytes) -> bytes:
        """Return a TD report over `report_data`, 1024 bytes; only this machine can verify its MAC.

        Raises:
            UsageError: If `report_data` is not 64 bytes.
            BackendUnavailableError: If the device is missing, not accessible, or of another driver.
            BackendBusyError: If the TDX module is busy.
            BackendError: If the call failed or the report is malformed.
        """
        if type(report_data) is not bytes or len(report_data) != REPORT_DATA_SIZE:
            raise UsageError(f"report_data: must be {REPORT_DATA_SIZE} bytes", reason="wrong_size")
        with self.open() as fd:
            return self.report(fd, report_data)

    def report(self, fd: int, report_data: bytes) -> bytes:
        """Return a TD report as `get_report`, with the device already open."""
        argument = report_data + bytes(REPORT_SIZE)
        request = self.command(fd, _GET_REPORT0, lambda: bytearray(argument))
        report = bytes(request[REPORT_DATA_SIZE:])
        if report[0] != _TDX_REPORT:
            raise BackendError(
                f"{self.path}: wrong type of the report: {report[0]:#04x}, expected 0x81",
                reason="malformed_response",
                path=str(self.path),
            )
        found = report[_REPORT_DATA_AT : _REPORT_DATA_AT + REPORT_DATA_SIZE]
        if not hmac.compare_digest(found, report_data):
            raise BackendError(
                f"{self.path}: wrong report data in the report",
                reason="wrong_report_data",
                path=str(self.path),
            )
        return report

    def command(self, fd: int, command: Command, argument: Callable[[], bytearray]) -> bytearray:
        """Make an ioctl call without side effects; return its argument as the kernel changed it.

        It is retried after EINTR and EBUSY, a limited number of times.

        Args:
            fd: The descriptor of the device.
            command: The ioctl.
            argument: Returns the argument, called for each attempt.

        Raises:
            BackendError: As in `command.meanings`.
        """
        waits = iter(BUSY_WAITS)
        interruptions = 0
        while True:
            request = argument()
            try:
                result = self._calls.ioctl(fd, command.number, request)
            except OSError as error:
                if error.errno == errno.EINTR and interruptions < command.interruptions:
                    interruptions += 1
                    continue
                if error.errno == errno.EBUSY and (wait := next(waits, None)) is not None:
                    self._sleep(wait)
                    continue
                raise self.translate_error(command, error) from error
            if result:
                raise BackendError(
                    f"{command.name} on {self.path}: unknown result: {result}",
                    reason="malformed_response",
                    path=str(self.path),
                )
            return request

    def translate_error(self, command: Command, error: OSError) -> BackendError:
        """Return the BackendError for an errno of `command`."""
        kind, reason, meaning = find_meaning(command.meanings, error)
        text = f"{command.name} on {self.path}: {error_name(error)}: {meaning}"
        return kind(text, reason=reason, path=str(self.path))


def find_meaning(meanings: Mapping[int, Meaning], error: OSError) -> Meaning:
    """Return the meaning of an OSError; a general one if `meanings` does not have its errno."""
    return meanings.get(error.errno or 0, _UNKNOWN)


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True
