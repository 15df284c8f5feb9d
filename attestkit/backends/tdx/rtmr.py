"""The run-time measurement registers of a TDX guest: what they hold, and how to extend one.

Linux has files for them since 6.16 (Documentation/ABI/testing, sysfs-devices-virtual-misc-
tdx_guest): reading one gives the register, writing 48 bytes extends it. Kernels of cloud and
distribution makers have an ioctl in its place; it is tried only where the folder of those files
does not exist, and its other form only after an answer which proves that nothing was extended.

An extend cannot be taken back, and a second one is another history. So there is one write or ioctl
call for an extend, and another only after the register has shown that the first did nothing.
"""

import errno
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Final

from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import (
    REAL_CALLS,
    DeviceCalls,
    error_name,
    ior,
    iow,
    permissions,
    read_file,
)
from attestkit.backends.tdx.device import BUSY_WAITS, MEANINGS, Command, Meaning, TdxDevice
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    UnsupportedError,
    UsageError,
)

__all__ = ["EXTEND_RTMR", "EXTEND_RTMR_V3", "Rtmrs"]

SIZE: Final = 48  # bytes of a register, and of a digest
READABLE: Final = (0, 1, 2, 3)
EXTENDABLE: Final = (2, 3)  # 0 and 1 belong to firmware and kernel

# The argument of both is the digest and a byte with the register's number.
EXTEND_RTMR: Final = ior("T", 3, SIZE + 1)  # Intel's out-of-tree driver and dstack's
EXTEND_RTMR_V3: Final = iow("T", 3, SIZE + 1)  # Intel's, as its library's "V3" build knows it

_RTMRS_AT: Final = 720  # in a TD report
_ANY_DATA: Final = bytes(64)  # report data of a report that is asked for its registers
_NOT_DONE: Final = frozenset({errno.EINTR, errno.EBUSY})  # by the driver's word
_NO_FOLDER: Final = "the kernel has no register files (they came with Linux 6.16)"

_FILE_MEANINGS: Final[Mapping[int, Meaning]] = {
    errno.EINVAL: (BackendError, "this is no register's file: those take and give 48 bytes"),
    errno.EINTR: (BackendBusyError, "signals interrupt it again and again: try again later"),
    errno.EBUSY: (BackendBusyError, "the TDX module stays busy: try again later"),
    errno.EIO: (BackendError, "the TDX module refused: see the kernel's log (dmesg)"),
}
_EXTEND_MEANINGS: Final[Mapping[int, Meaning]] = {
    **MEANINGS,
    errno.EPERM: (
        BackendUnavailableError,
        "the driver keeps this register for itself, or a security policy forbids it",
    ),
    errno.EINVAL: (BackendError, "the driver says that there is no such register"),
}


# Only its name and meanings count: it is never repeated blindly.
_EXTEND: Final = Command("EXTEND_RTMR", EXTEND_RTMR, _EXTEND_MEANINGS)


class Rtmrs:
    """RTMR0 to RTMR3, through the kernel's files or the device.

    Args:
        paths: Where the files are, and if somebody chose their folder: then nothing else is tried.
        device: The TDX device.
        calls: The system calls.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        paths: KernelPaths,
        device: TdxDevice,
        *,
        calls: DeviceCalls = REAL_CALLS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folder = paths.measurements
        self._named = paths.measurements_named
        self._device = device
        self._calls = calls
        self._sleep = sleep

    # -- reading -------------------------------------------------------------------------------

    def read(self, register: int) -> bytes:
        """Return what a register, 0 to 3, holds: 48 bytes, from its file, else from a TD report.

        The kernel may show late in the file what was not extended through it.

        Raises:
            UsageError: There is no such register.
            BackendUnavailableError: Neither can be read.
            BackendError: What was read is no register.
        """
        _check_register(register, READABLE, "there is no RTMR{}")
        folder = self._open_folder()
        if folder is None:
            try:
                report = self._device.get_report(_ANY_DATA)
            except BackendUnavailableError as error:
                raise BackendUnavailableError(f"{_NO_FOLDER}, and {error}") from error
            return _from_report(report, register)
        try:
            return self._from_file(folder, register)
        finally:
            os.close(folder)

    def read_fresh(self, register: int) -> bytes:
        """Return what a register holds by a new TD report; by its file where we have no device.

        Raises:
            UsageError: There is no such register.
            BackendUnavailableError: Neither can be read.
            BackendError: What was read is no register.
        """
        _check_register(register, READABLE, "there is no RTMR{}")
        with ExitStack() as stack:
            try:
                fd = stack.enter_context(self._device.opened())
            except BackendUnavailableError:
                return self.read(register)
            return _from_report(self._device.report(fd, _ANY_DATA), register)

    def _open_folder(self) -> int | None:
        """Return a descriptor of the files' folder; None if it is missing, and may be."""
        try:
            return self._calls.open_file(self._folder, os.O_RDONLY | os.O_DIRECTORY, None)
        except OSError as error:
            if error.errno == errno.ENOENT and not self._named:
                return None
            raise self._no_folder(error) from error

    def _no_folder(self, error: OSError) -> BackendError:
        said = f"the registers' folder {self._folder} cannot be opened ({error_name(error)})"
        if error.errno in (errno.EACCES, errno.EPERM):
            return BackendUnavailableError(f"{said}: {permissions(self._folder)}")
        if self._named:
            said += "; it was chosen by name (DCAP_TDX_RTMR_SYSFS_PATH), so nothing else is tried"
        absent = error.errno in (errno.ENOENT, errno.ENOTDIR)
        return BackendUnavailableError(said) if absent else BackendError(said)

    def _from_file(self, folder: int, register: int) -> bytes:
        name = _file_of(register)
        try:
            value = read_file(name, SIZE, folder=folder, calls=self._calls)
        except OSError as error:
            raise self._refused("read", name, error) from error
        if len(value) != SIZE:
            found = f"more than {SIZE}" if len(value) > SIZE else str(len(value))
            raise BackendError(f"{self._folder / name} holds {found} bytes, a register has {SIZE}")
        return value

    def _refused(self, what: str, name: str, error: OSError) -> BackendError:
        """Return what an errno of a register's file means."""
        path = self._folder / name
        said = f"{path} cannot be {what} ({error_name(error)})"
        if error.errno in (errno.EACCES, errno.EPERM):
            by_default = "only root may extend" if what == "extended" else "everybody may read"
            return BackendUnavailableError(
                f"{said}: {permissions(path)}; {by_default} it where no rule says otherwise"
            )
        if error.errno == errno.EROFS:
            return BackendUnavailableError(
                f"{said}: sysfs is read-only here, as it is in a container; bind-mount "
                f"{self._folder} read-write"
            )
        if error.errno == errno.ENOENT:
            return BackendUnavailableError(
                f"{said}: its folder is there, so this is not how Linux 6.16 or later names it"
            )
        kind, text = _FILE_MEANINGS.get(
            error.errno or 0, (BackendError, "the kernel is not known to say this")
        )
        return kind(f"{said}: {text}")

    # -- extending -----------------------------------------------------------------------------

    def extend(self, register: int, digest: bytes) -> None:
        """Extend RTMR2 or RTMR3 by a digest of 48 bytes, once; nothing is logged.

        Raises:
            UsageError: A program cannot extend this register, or not by this.
            UnsupportedError: This kernel has no way to.
            BackendUnavailableError: It has, and we may not use it; nothing was changed.
            BackendBusyError: The TDX module is busy; nothing was changed.
            BackendError: Anything else; only the register tells whether it was extended.
        """
        _check_register(register, EXTENDABLE, "a program can extend RTMR2 and RTMR3, not RTMR{}")
        if type(digest) is not bytes or len(digest) != SIZE:
            raise UsageError(f"a register is extended by a digest of {SIZE} bytes")
        folder = self._open_folder()
        if folder is None:
            with self._device.opened() as fd:
                self._extend_by_ioctl(fd, register, digest)
            return
        try:
            self._extend_by_file(folder, register, digest)
        finally:
            os.close(folder)

    def _extend_by_file(self, folder: int, register: int, digest: bytes) -> None:
        name = _file_of(register)

        def write() -> None:
            fd = self._calls.open_file(name, os.O_WRONLY, folder)
            try:
                taken = self._calls.write(fd, digest)
            finally:
                os.close(fd)
            if taken != SIZE:
                raise BackendError(
                    f"{self._folder / name} took {taken} of {SIZE} bytes: whether "
                    f"RTMR{register} was extended has to be read from it"
                )

        if error := self._once(register, digest, write):
            raise self._refused("extended", name, error) from error

    def _extend_by_ioctl(self, fd: int, register: int, digest: bytes) -> None:
        """Extend by the first form of the ioctl, by the other only if the first is not known."""
        for number in (EXTEND_RTMR, EXTEND_RTMR_V3):
            error = self._once(register, digest, self._extender(fd, number, register, digest))
            if error is None:
                return
            if error.errno != errno.ENOTTY:
                raise self._device.failure(_EXTEND, error) from error
        raise UnsupportedError(
            f"{_NO_FOLDER}, and the driver of {self._device.path} extends no register: update the "
            f"kernel, or bind-mount {self._folder} if this is a container"
        )

    def _extender(self, fd: int, number: int, register: int, digest: bytes) -> Callable[[], None]:
        def extend() -> None:
            result = self._calls.ioctl(fd, number, bytearray(digest) + bytes([register]))
            if result:
                raise BackendError(
                    f"EXTEND_RTMR on {self._device.path} returned {result}, not 0: whether "
                    f"RTMR{register} was extended has to be read from it"
                )

        return extend

    def _once(self, register: int, digest: bytes, extend: Callable[[], None]) -> OSError | None:
        """Extend once; return the error of the last attempt if the register was not extended.

        Raises:
            BackendError: The register holds what neither an extend nor none explains.
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
                self._sleep(wait)
            if (now := self.read_fresh(register)) == after:
                return None
            if now != before:
                raise BackendError(
                    f"RTMR{register} was extended by somebody else meanwhile: it was "
                    f"{before.hex()} and is {now.hex()}; whether our extend by {digest.hex()} is "
                    f"in it is not known (the kernel said {error_name(error)})"
                ) from error
        return error


def _from_report(report: bytes, register: int) -> bytes:
    return report[_RTMRS_AT + SIZE * register :][:SIZE]


def _file_of(register: int) -> str:
    return f"rtmr{register}:sha384"


def _check_register(register: int, known: tuple[int, ...], text: str) -> None:
    if type(register) is not int or register not in known:
        raise UsageError(text.format(register))
