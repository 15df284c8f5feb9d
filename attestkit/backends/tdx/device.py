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

from attestkit.backends.linux.device_errors import (
    ABSENT,
    FORBIDDEN_BY_POLICY,
    INTERRUPTED,
    OUT_OF_MEMORY,
    Meaning,
    access_error,
    busy,
    error_name,
    failed,
    translate_errno,
    unavailable,
)
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, iowr
from attestkit.errors import BackendError, UsageError

REPORT_DATA_SIZE: Final = 64
REPORT_SIZE: Final = 1024
GET_REPORT0: Final = iowr("T", 1, REPORT_DATA_SIZE + REPORT_SIZE)

_TDX_REPORT: Final = 0x81  # byte 0 of a report: its type
_REPORT_DATA_AT: Final = 128  # in a report

# Waits in seconds between retries while the TDX module is busy.
BUSY_WAITS: Final = (0.001, 0.01, 0.05, 0.1, 0.2)

MODULE_BUSY: Final[Meaning] = (busy, "device", "the TDX module is busy; retry later")
_FAILED: Final = "the TDX module failed; see the kernel log (dmesg)"
MODULE_FAILED: Final[Meaning] = (failed, "io_error", _FAILED)
_OLD_DRIVER: Final = "the driver has no such command; use Linux 6.2 or later"
MEANINGS: Final[Mapping[int, Meaning]] = {
    errno.EFAULT: (failed, "io_error", "invalid buffer; report this bug to attestkit"),
    errno.ENOMEM: OUT_OF_MEMORY,
    errno.EINVAL: (failed, "io_error", "the TDX module rejected an operand; update Linux"),
    errno.EBUSY: MODULE_BUSY,
    errno.EINTR: INTERRUPTED,
    errno.EIO: MODULE_FAILED,
    errno.ENOTTY: (unavailable, "unsupported_kernel", _OLD_DRIVER),
    errno.EPERM: FORBIDDEN_BY_POLICY,
    errno.EACCES: FORBIDDEN_BY_POLICY,
}

_ABSENT: Final = ABSENT | {errno.ENXIO, errno.ENODEV}


class Command(NamedTuple):
    """An ioctl of the device: its number, and its errors by errno (`meanings`)."""

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
        self.calls = calls
        self.sleep = sleep

    @contextmanager
    def open(self) -> Iterator[int]:
        """Context manager: open the device, yield its descriptor, and close it on exit.

        Raises:
            BackendUnavailableError: If the device is missing or not accessible.
            BackendError: If it cannot be opened for another reason.
        """
        try:
            fd = self.calls.open_file(self.path, os.O_RDWR, None)
        except OSError as error:
            raise self._open_error(error) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def _open_error(self, error: OSError) -> BackendError:
        if error.errno not in _ABSENT:
            remedy = "; grant access by a udev rule, in a container also by its device rules"
            return access_error(self.path, "cannot be opened", error, remedy)
        name = error_name(error)
        for node in self._old_nodes:
            if _exists(node):
                text = f"driver too old, it has {node} ({name}); use Linux 6.2 or later"
                return unavailable(self.path, text, "unsupported_kernel")
        text = (
            f"cannot be opened ({name}); run on a TDX guest, load the driver (modprobe tdx-guest), "
            f"or in a container pass the device through (--device {self.path})"
        )
        return unavailable(self.path, text, "missing")

    def get_report(self, report_data: bytes) -> bytes:
        """Return a TD report, 1024 bytes, over `report_data`, exactly 64 bytes.

        Only this machine can verify its MAC.

        Raises:
            UsageError: If `report_data` is not 64 bytes.
            BackendUnavailableError: If the device is missing, not accessible, or of another driver.
            BackendBusyError: If the TDX module is busy.
            BackendError: If the call failed or the report is malformed.
        """
        if type(report_data) is not bytes or len(report_data) != REPORT_DATA_SIZE:
            given = len(report_data) if type(report_data) is bytes else type(report_data).__name__
            text = f"report_data: must be {REPORT_DATA_SIZE} bytes, not {given}"
            raise UsageError(text, reason="wrong_size")
        with self.open() as fd:
            return self.report(fd, report_data)

    def report(self, fd: int, report_data: bytes) -> bytes:
        """Return a TD report over `report_data`, 64 bytes, as `get_report` does.

        `fd` is the open device; the size is not checked.
        """
        argument = report_data + bytes(REPORT_SIZE)
        request = self.command(fd, _GET_REPORT0, lambda: bytearray(argument))
        report = bytes(request[REPORT_DATA_SIZE:])
        if report[0] != _TDX_REPORT:
            text = f"TD report: wrong type (byte 0): {report[0]:#04x}, expected 0x81"
            raise failed(self.path, text, "malformed_response")
        found = report[_REPORT_DATA_AT : _REPORT_DATA_AT + REPORT_DATA_SIZE]
        if not hmac.compare_digest(found, report_data):
            raise failed(self.path, "TD report: not over report_data; retry", "wrong_report_data")
        return report

    def command(self, fd: int, command: Command, argument: Callable[[], bytearray]) -> bytearray:
        """Make an ioctl call without side effects; return its argument as the kernel changed it.

        It is retried after EINTR and EBUSY, a limited number of times.

        Args:
            fd: The descriptor of the device.
            command: The ioctl.
            argument: Returns the argument, called for each attempt.

        Raises:
            BackendError: If the call fails, or its result is not 0. For an errno in
                `command.meanings` it is the error, mostly of a subclass, that is given there.
        """
        waits = iter(BUSY_WAITS)
        interruptions = 0
        while True:
            request = argument()
            try:
                result = self.calls.ioctl(fd, command.number, request)
            except OSError as error:
                if error.errno == errno.EINTR and interruptions < command.interruptions:
                    interruptions += 1
                    continue
                if error.errno == errno.EBUSY and (wait := next(waits, None)) is not None:
                    self.sleep(wait)
                    continue
                raise translate_errno(self.path, command.name, error, command.meanings) from error
            if result:
                text = f"{command.name}: unknown result: {result}"
                raise failed(self.path, text, "malformed_response")
            return request


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True
