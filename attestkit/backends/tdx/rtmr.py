"""Run-time measurement registers (RTMRs) of a TDX guest, and the base class of the TDX backends.

Linux 6.16 and later have a file for each (Documentation/ABI/testing, sysfs-devices-virtual-misc-
tdx_guest): reading it returns the register, writing 48 bytes extends it. Some kernels of clouds and
distributions have an ioctl instead. It is used only if the directory of those files does not exist;
its second form is used only after ENOTTY, which proves that the first did not extend.

An extend is irreversible, so a write or ioctl call is retried only if the register shows that the
previous one had no effect.
"""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

from attestkit.backends.linux import device_errors
from attestkit.backends.linux.guest_logs import GuestJournal, read_boot_log
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, ior, iow, read_file
from attestkit.backends.tdx.device import (
    BUSY_WAITS,
    MEANINGS,
    MODULE_BUSY,
    MODULE_FAILED,
    TdxDevice,
)
from attestkit.errors import BackendError, BackendUnavailableError, UnsupportedError, UsageError
from attestkit.event_log.journal import RegisterAccess, RuntimeLog

SIZE: Final = 48  # bytes of a register and of a digest
READABLE: Final = (0, 1, 2, 3)
EXTENDABLE: Final = (2, 3)  # 0 and 1 are reserved for firmware and kernel

# Argument of both: the digest, and one byte with the number of the register.
EXTEND_RTMR: Final = ior("T", 3, SIZE + 1)  # out-of-tree drivers of Intel and dstack
EXTEND_RTMR_V3: Final = iow("T", 3, SIZE + 1)  # of Intel, "V3" in its library

_RTMRS_AT: Final = 720  # offset in a TD report
_ANY_DATA: Final = bytes(64)  # report data of TD reports that are read for their RTMRs
_NOT_DONE: Final = frozenset({errno.EINTR, errno.EBUSY})  # the driver did not extend
_UNKNOWN_OUTCOME: Final = "read the register to find out whether it was extended"
_NO_FILES: Final = "no RTMR files in sysfs (added in Linux 6.16)"

_READ_ONLY: Final = "sysfs is read-only, as in a container; bind-mount the directory read-write"
_NO_FILE: Final = "the directory exists, but without the file of Linux 6.16 and later"
_RESERVED: Final = "the driver reserves this register, or a security policy forbids it"
FILE_MEANINGS: Final[Mapping[int, device_errors.Meaning]] = {
    errno.EINVAL: (device_errors.failed, "io_error", "not an RTMR file: those have 48 bytes"),
    errno.EINTR: device_errors.INTERRUPTED,
    errno.EBUSY: MODULE_BUSY,
    errno.EIO: MODULE_FAILED,
    **dict.fromkeys(device_errors.DENIED, device_errors.FORBIDDEN_BY_POLICY),
    errno.EROFS: (device_errors.unavailable, "permission_denied", _READ_ONLY),
    errno.ENOENT: (device_errors.unavailable, "missing", _NO_FILE),
}
_EXTEND_MEANINGS: Final[Mapping[int, device_errors.Meaning]] = {
    **MEANINGS,
    errno.EPERM: (device_errors.unavailable, "permission_denied", _RESERVED),
    errno.EINVAL: (device_errors.failed, "io_error", "the driver has no such register"),
}


class RtmrAccess:
    """RTMR0 to RTMR3 by the files in sysfs or by the TDX device.

    Args:
        paths: The directory of the files (`measurements`). If it is missing, the device is used,
            but with `measurements_configured` that is an error.
        device: The TDX device, whose system calls are used for the files too.
    """

    def __init__(self, paths: KernelPaths, device: TdxDevice) -> None:
        self._folder = paths.measurements
        self._configured = paths.measurements_configured
        self._device = device

    # -- reading -------------------------------------------------------------------------------

    def read(self, register: int) -> bytes:
        """Return register 0 to 3 from its file or, without the directory, a TD report: 48 bytes.

        The file may be stale if the register was extended by other means.

        Raises:
            UsageError: If `register` is not 0 to 3.
            BackendUnavailableError: If the file or, without the directory, the device is missing or
                not accessible.
            BackendError: If reading failed for another reason, or the value is malformed.
        """
        _check_register(register, READABLE, "must be 0 to 3")
        with self._opened_folder() as folder:
            if folder is not None:
                return self._from_file(folder, register)
        try:
            report = self._device.get_report(_ANY_DATA)
        except BackendUnavailableError as error:
            text = f"{_NO_FILES}, and {error}"
            raise BackendUnavailableError(text, reason=error.reason, path=error.path) from error
        return _from_report(report, register)

    def read_fresh(self, register: int) -> bytes:
        """Return RTMR `register`, 0 to 3, from a new TD report: 48 bytes.

        It is read from its file in sysfs if the device is not accessible.

        Raises:
            UsageError: If `register` is not 0 to 3.
            BackendUnavailableError: If neither the file nor the device is accessible, or the driver
                of the device makes no TD reports.
            BackendError: If reading failed for another reason, or the value is malformed.
        """
        _check_register(register, READABLE, "must be 0 to 3")
        with ExitStack() as stack:
            try:
                fd = stack.enter_context(self._device.open())
            except BackendUnavailableError:
                return self.read(register)
            return _from_report(self._device.report(fd, _ANY_DATA), register)

    @contextmanager
    def _opened_folder(self) -> Iterator[int | None]:
        """Context manager: open the directory of RTMR files for reading, and close it on exit.

        It yields the descriptor; None if the directory is missing and none was configured.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY
        folder = None
        try:
            folder = self._device.calls.open_file(self._folder, flags, None)
        except OSError as error:
            if error.errno != errno.ENOENT or self._configured:
                raise self._folder_error(error) from error
        try:
            yield folder
        finally:
            if folder is not None:
                os.close(folder)

    def _folder_error(self, error: OSError) -> BackendError:
        text = "RTMR directory: cannot be opened"
        if self._configured and error.errno not in device_errors.DENIED:
            text += "; correct or unset DCAP_TDX_RTMR_SYSFS_PATH"
        if error.errno in device_errors.ABSENT:
            return device_errors.unavailable(
                self._folder, f"{text} ({device_errors.error_name(error)})", "missing"
            )
        return device_errors.access_error(self._folder, text, error)

    def _from_file(self, folder: int, register: int) -> bytes:
        name = _file_name(register)
        try:
            value = read_file(name, SIZE, folder=folder, calls=self._device.calls)
        except OSError as error:
            raise self._file_error("read", name, error) from error
        if len(value) != SIZE:
            found = f"more than {SIZE}" if len(value) > SIZE else str(len(value))
            text = f"wrong size: {found} bytes, expected {SIZE}"
            raise device_errors.failed(self._folder / name, text, "malformed_response")
        return value

    def _file_error(self, what: str, name: str, error: OSError) -> BackendError:
        """Return the error for the RTMR file `name`; `what` failed: "read" or "extended"."""
        path, text = self._folder / name, f"cannot be {what}"
        if error.errno in device_errors.DENIED:
            default = "root may extend" if what == "extended" else "every user may read"
            return device_errors.access_error(path, text, error, f"; by default, {default} it")
        return device_errors.translate_errno(path, text, error, FILE_MEANINGS)

    # -- extending -----------------------------------------------------------------------------

    def extend(self, register: int, digest: bytes) -> None:
        """Extend RTMR2 or RTMR3 by a digest of 48 bytes, once, without logging an event.

        Raises:
            UsageError: If the register is not 2 or 3, or the digest is not 48 bytes.
            UnsupportedError: If the kernel cannot extend registers.
            BackendUnavailableError: If file or device is not accessible; nothing was extended.
            BackendBusyError: If the TDX module is busy; nothing was extended.
            BackendError: If the extend failed for another reason; it may have taken effect.
        """
        _check_register(register, EXTENDABLE, "must be 2 or 3")
        if type(digest) is not bytes or len(digest) != SIZE:
            given = len(digest) if type(digest) is bytes else type(digest).__name__
            raise UsageError(f"digest: must be {SIZE} bytes, not {given}", reason="wrong_size")
        with self._opened_folder() as folder:
            if folder is not None:
                self._extend_by_file(folder, register, digest)
                return
        with self._device.open() as fd:
            self._extend_by_ioctl(fd, register, digest)

    def _extend_by_file(self, folder: int, register: int, digest: bytes) -> None:
        name = _file_name(register)

        def write() -> None:
            fd = self._device.calls.open_file(name, os.O_WRONLY, folder)
            try:
                written = self._device.calls.write(fd, digest)
            finally:
                os.close(fd)
            if written != SIZE:
                text = f"{written} of {SIZE} bytes written; {_UNKNOWN_OUTCOME}"
                raise device_errors.failed(self._folder / name, text, "outcome_unknown")

        if error := self._extend_once(register, digest, write):
            raise self._file_error("extended", name, error) from error

    def _extend_by_ioctl(self, fd: int, register: int, digest: bytes) -> None:
        """Extend a register by the ioctl EXTEND_RTMR or, if that returns ENOTTY, EXTEND_RTMR_V3.

        `fd` is the open device, `register` 2 or 3, and `digest` has 48 bytes.
        """
        for number in (EXTEND_RTMR, EXTEND_RTMR_V3):
            extend = self._extender(fd, number, register, digest)
            error = self._extend_once(register, digest, extend)
            if error is None:
                return
            if error.errno != errno.ENOTTY:
                raise device_errors.translate_errno(
                    self._device.path, "EXTEND_RTMR", error, _EXTEND_MEANINGS
                ) from error
        raise UnsupportedError(
            f"{_NO_FILES}, and the driver of {self._device.path} cannot extend RTMRs; update the "
            f"kernel, or in a container bind-mount {self._folder}",
            reason="no_registers",
        )

    def _extender(self, fd: int, number: int, register: int, digest: bytes) -> Callable[[], None]:
        def extend() -> None:
            result = self._device.calls.ioctl(fd, number, bytearray(digest) + bytes([register]))
            if result:
                text = f"EXTEND_RTMR: unknown result: {result}; {_UNKNOWN_OUTCOME}"
                raise device_errors.failed(self._device.path, text, "outcome_unknown")

        return extend

    def _extend_once(
        self, register: int, digest: bytes, extend: Callable[[], None]
    ) -> OSError | None:
        """Call `extend`, and again after EINTR or EBUSY; return its last error, None on success.

        It is called again only if the register shows that the previous call had no effect.

        Args:
            register: Number of the register, to read it.
            digest: Digest by which `extend` extends it, to recognise the new value.
            extend: Makes the system call; raises OSError.

        Raises:
            BackendError: If the register shows that another process extended it meanwhile.
        """
        before = self.read_fresh(register)
        after = hashlib.sha384(before + digest).digest()
        error: OSError | None = None
        for wait in (*BUSY_WAITS, None):
            try:
                extend()
            except OSError as failure:
                error = failure
            else:
                return None
            if error.errno not in _NOT_DONE:
                return error
            if error.errno == errno.EBUSY and wait is not None:
                self._device.sleep(wait)
            if (now := self.read_fresh(register)) == after:
                return None
            if now != before:
                raise BackendError(
                    f"RTMR{register}: extended by another process at the same time: from "
                    f"{before.hex()} to {now.hex()}; the extend by {digest.hex()} may be included "
                    f"({device_errors.error_name(error)}); let one process extend it; "
                    "reboot if the log no longer replays",
                    reason="register_conflict",
                ) from error
        return error


def _from_report(report: bytes, register: int) -> bytes:
    return report[_RTMRS_AT + SIZE * register :][:SIZE]


def _file_name(register: int) -> str:
    return f"rtmr{register}:sha384"


def _check_register(register: int, known: tuple[int, ...], text: str) -> None:
    if type(register) is not int or register not in known:
        raise UsageError(f"register: {text}, not {register!r}", reason="out_of_range")


_RUNTIME_REGISTER: Final = 3


class TdGuest:
    """The registers and logs of the TDX guest that this process runs in.

    Only the lock of the journal stays open between calls. It is thread-safe; after a fork all but
    the journal works.

    Args:
        paths: The kernel's paths.
        calls: The system calls.
        sleep: Sleeps for the given number of seconds.
    """

    def __init__(
        self,
        paths: KernelPaths,
        *,
        calls: DeviceCalls = REAL_CALLS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._paths = paths
        self._calls = calls
        self._device = TdxDevice(paths.tdx_guest, paths.old_nodes, calls=calls, sleep=sleep)
        self._rtmrs = RtmrAccess(paths, self._device)
        register = RegisterAccess(
            lambda: self._rtmrs.read_fresh(_RUNTIME_REGISTER),
            lambda digest: self._rtmrs.extend(_RUNTIME_REGISTER, digest),
        )
        self._runtime_log = GuestJournal(paths, register, calls=calls)

    def read_rtmr(self, register: int) -> bytes:
        """Return a register, 0 to 3: 48 bytes.

        Raises:
            UsageError: If `register` is not 0 to 3.
            BackendUnavailableError: If the RTMR file or, without the directory of these files, the
                device is missing or not accessible.
            BackendError: If reading failed for another reason.
        """
        return self._rtmrs.read(register)

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend RTMR2 or RTMR3 by a digest of 48 bytes, once; nothing is logged.

        Raises:
            UsageError: If the register is not 2 or 3, or the digest is not 48 bytes.
            UnsupportedError: If the kernel cannot extend registers.
            BackendUnavailableError: If the register is not accessible; nothing was extended.
            BackendBusyError: If the TDX module is busy; nothing was extended.
            BackendError: If the extend failed for another reason; it may have taken effect.
        """
        self._rtmrs.extend(register, digest)

    def read_event_log(self) -> bytes:
        """Return the boot log, binary: the whole CCEL area with its padding; empty without a log.

        Raises:
            BackendUnavailableError: If the log exists but is not accessible, or /sys/firmware is
                empty, or the file `$DSTACK_CCEL_FILE` is missing.
            BackendError: If the CCEL table or the size of the log is invalid, or reading failed for
                another reason.
        """
        return read_boot_log(self._paths, calls=self._calls)

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the log of runtime events of this boot; every call returns the same object.

        The log reads RTMR3 from a new TD report or, if the device is not accessible, from the
        register's file in sysfs.

        Args:
            version: How event digests are computed, 1 or 2 (see `runtime_preimage`). None: as
                those of this boot's events, or 1 if there are none. Only the first call uses this
                argument; it creates the log.

        Raises:
            UsageError: If the backend is closed or was created before a fork.
            BackendError: If the boot id cannot be read or is malformed.
        """
        return self._runtime_log.open(version)

    def close(self) -> None:
        """Close the journal and release its lock. A second call has no effect."""
        self._runtime_log.close()
