"""The TDX guest device of Linux: TD reports by ioctl, and what its errors mean.

Source: include/uapi/linux/tdx-guest.h and drivers/virt/coco/tdx-guest of Linux 6.2 and later. The
device was called otherwise before, and the same number meant other things there: such a node is
named and not used.
"""

import errno
import hmac
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, error_name, iowr, permissions
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    UsageError,
)

__all__ = ["GET_REPORT0", "Command", "Meaning", "TdxDevice"]

REPORT_DATA_SIZE: Final = 64
REPORT_SIZE: Final = 1024
GET_REPORT0: Final = iowr("T", 1, REPORT_DATA_SIZE + REPORT_SIZE)

_TDX_REPORT: Final = 0x81  # byte 0 of a report: its type
_REPORT_DATA_AT: Final = 128  # in a report

# A busy TDX module is asked again after so many seconds; together they are below one second.
BUSY_WAITS: Final = (0.001, 0.01, 0.05, 0.1, 0.2)

# How every errno of the driver reads: the class of the error, and what to do.
Meaning = tuple[type[BackendError], str]
MEANINGS: Final[Mapping[int, Meaning]] = {
    errno.EFAULT: (BackendError, "the kernel could not use our buffer: report it to attestkit"),
    errno.ENOMEM: (BackendError, "the kernel has no memory for it: free some and try again"),
    errno.EINVAL: (
        BackendError,
        "the TDX module says that an operand is invalid: kernel and module do not fit each other",
    ),
    errno.EBUSY: (BackendBusyError, "the TDX module stays busy: try again later"),
    errno.EINTR: (BackendBusyError, "signals interrupt it again and again: try again later"),
    errno.EIO: (BackendError, "the call into the TDX module failed: see the kernel's log (dmesg)"),
    errno.ENOTTY: (
        BackendUnavailableError,
        "the driver does not know this command: it is another driver, or older than Linux 6.2",
    ),
    errno.EPERM: (BackendUnavailableError, "a security policy forbids it (seccomp, LSM)"),
    errno.EACCES: (BackendUnavailableError, "a security policy forbids it (seccomp, LSM)"),
}

_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENODEV})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class Command(NamedTuple):
    """An ioctl of the device, and how it is made again."""

    name: str  # as people call it
    number: int
    meanings: Mapping[int, Meaning] = MEANINGS
    interruptions: int = 100  # so many signals in a row are survived; more are somebody's timer


_GET_REPORT0: Final = Command("GET_REPORT0", GET_REPORT0)


class TdxDevice:
    """`/dev/tdx_guest`, opened for each use: it keeps nothing between two calls.

    Args:
        path: The node.
        old_nodes: Nodes of drivers that came before; one of these in place of `path` is named.
        calls: The system calls.
        sleep: Waits so many seconds.
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
    def opened(self) -> Iterator[int]:
        """Open the node, for as long as a `with` lasts.

        Raises:
            BackendUnavailableError: There is none, or we may not use it.
            BackendError: It cannot be opened for another reason.
        """
        try:
            fd = self._calls.open_file(self.path, os.O_RDWR, None)
        except OSError as error:
            raise self._not_opened(error) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def _not_opened(self, error: OSError) -> BackendError:
        said = f"{self.path} cannot be opened ({error_name(error)})"
        if error.errno in _FORBIDDEN:
            return BackendUnavailableError(
                f"{said}: {permissions(self.path)}; a udev rule with a group opens it up, in a "
                "container also its device rules"
            )
        if error.errno not in _ABSENT:
            return BackendError(said)
        for node in self._old_nodes:
            if _is_there(node):
                return BackendUnavailableError(
                    f"driver too old: {node} is there, and not {self.path} ({error_name(error)}); "
                    "Linux 6.2 or later is needed"
                )
        return BackendUnavailableError(
            f"{said}: this is no TDX guest, or its driver is not loaded (modprobe tdx-guest), or "
            f"the container was not given it (--device {self.path})"
        )

    def get_report(self, report_data: bytes) -> bytes:
        """Return a TD report over `report_data`: 1024 bytes, good on this machine only.

        Raises:
            UsageError: `report_data` is not 64 bytes.
            BackendUnavailableError: The device is not there, not ours, or not this one.
            BackendBusyError: The TDX module is busy; nothing was changed.
            BackendError: It failed, or answered something that is no report of ours.
        """
        if type(report_data) is not bytes or len(report_data) != REPORT_DATA_SIZE:
            raise UsageError(f"report_data is {REPORT_DATA_SIZE} bytes here")
        with self.opened() as fd:
            return self.report(fd, report_data)

    def report(self, fd: int, report_data: bytes) -> bytes:
        """Do what `get_report` does, on the node that is open already."""
        given = report_data + bytes(REPORT_SIZE)
        request = self.command(fd, _GET_REPORT0, lambda: bytearray(given))
        report = bytes(request[REPORT_DATA_SIZE:])
        if report[0] != _TDX_REPORT:
            raise BackendError(f"{self.path} gave a report of type {report[0]:#04x}, not 0x81")
        told = report[_REPORT_DATA_AT : _REPORT_DATA_AT + REPORT_DATA_SIZE]
        if not hmac.compare_digest(told, report_data):
            raise BackendError(f"{self.path} gave a report over other report data than asked")
        return report

    def command(self, fd: int, command: Command, argument: Callable[[], bytearray]) -> bytearray:
        """Make an ioctl call that changes nothing, and return its argument as the kernel left it.

        After EINTR and EBUSY it is made again, a bounded number of times.

        Args:
            fd: The node, opened.
            command: What to call.
            argument: Makes the argument, anew for each try.

        Raises:
            BackendError: As the command's meanings say.
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
                raise self.failure(command, error) from error
            if result:
                raise BackendError(f"{command.name} on {self.path} returned {result}, not 0")
            return request

    def failure(self, command: Command, error: OSError) -> BackendError:
        """Return the error of ours that says what an errno of this command means."""
        unknown = (BackendError, "the driver is not known to say this")
        kind, text = command.meanings.get(error.errno or 0, unknown)
        return kind(f"{command.name} on {self.path}: {error_name(error)}: {text}")


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True
