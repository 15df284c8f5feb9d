"""What every backend for a TDX guest has besides quotes: registers, boot log, runtime events."""

import os
import re
import threading
import time
from collections.abc import Callable
from typing import Final

from attestkit.backends.linux.ccel import read_boot_log
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, error_name, read_file
from attestkit.backends.tdx.device import TdxDevice
from attestkit.backends.tdx.rtmr import Rtmrs
from attestkit.errors import BackendError, BackendUnavailableError, UsageError
from attestkit.event_log.journal import LOCK, Journal, RegisterAccess, RuntimeLog
from attestkit.event_log.journal_files import OsFolder

__all__ = ["TdGuest", "read_boot_id"]

_BOOT_ID: Final = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n?", re.ASCII)
_BOOT_ID_SIZE: Final = 37  # bytes, its newline included
_RUNTIME_REGISTER: Final = 3


class TdGuest:
    """The registers and logs of the TDX guest that this program runs in.

    Nothing is opened before it is used, and nothing but the journal's lock stays open. Threads may
    share it; after a fork it still works, but for its journal.

    Args:
        paths: Where the kernel has its files.
        calls: The system calls.
        sleep: Waits so many seconds.
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
        self._rtmrs = Rtmrs(paths, self._device, calls=calls, sleep=sleep)
        self._process = os.getpid()
        self._mutex = threading.Lock()
        self._journal: Journal | None = None
        self._closed = False

    def read_rtmr(self, register: int) -> bytes:
        """Return what a register, 0 to 3, holds now: 48 bytes.

        Raises:
            UsageError: There is no such register.
            BackendUnavailableError: Neither the kernel's files nor the device can be read.
            BackendError: They answered wrongly.
        """
        return self._rtmrs.read(register)

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend RTMR2 or RTMR3 by a digest of 48 bytes, once; nothing is logged.

        Raises:
            UsageError: A program cannot extend this register, or not by this.
            UnsupportedError: This kernel has no way to.
            BackendUnavailableError: No permission.
            BackendBusyError: The TDX module is busy; nothing was changed.
            BackendError: Anything else; only the register tells whether it was extended.
        """
        self._rtmrs.extend(register, digest)

    def read_event_log(self) -> bytes:
        """Return the firmware's log: the whole area with its fill, empty if there is none.

        Raises:
            BackendUnavailableError: It is there, and cannot be read.
            BackendError: The table that describes it is wrong.
        """
        return read_boot_log(self._paths, calls=self._calls)

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the runtime events of this boot; every call the same object.

        The register it believes is read from a fresh TD report where that can be had.

        Args:
            version: The digest version that the app asks for, 1 or 2; None if it asks for none.
                The first call's counts.

        Raises:
            UsageError: This object is closed, or from before a fork.
            BackendError: The kernel's boot id cannot be read, or is none.
        """
        if self._process != os.getpid():  # a child would share its parent's lock
            raise UsageError("a journal does not survive a fork: make another backend")
        with self._mutex:
            if self._closed:
                raise UsageError("this backend is closed")
            if self._journal is None:
                folder = OsFolder(self._paths.runtime_log, LOCK)
                register = RegisterAccess(self._read_fresh, self._extend_runtime)
                boot_id = read_boot_id(self._paths, calls=self._calls)
                self._journal = Journal(folder, register, boot_id=boot_id, version=version)
            return self._journal

    def _read_fresh(self) -> bytes:
        return self._rtmrs.read_fresh(_RUNTIME_REGISTER)

    def _extend_runtime(self, digest: bytes) -> None:
        self._rtmrs.extend(_RUNTIME_REGISTER, digest)

    def close(self) -> None:
        """Close the journal, which lets its lock go. A second call does nothing."""
        if self._process != os.getpid():
            return  # what a fork inherited is its parent's to close
        with self._mutex:
            self._closed = True
            if self._journal is not None:
                self._journal.close()
                self._journal = None


def read_boot_id(paths: KernelPaths, *, calls: DeviceCalls = REAL_CALLS) -> str:
    """Return the text that changes with every boot, a UUID.

    Raises:
        BackendUnavailableError: The file cannot be read.
        BackendError: It holds something else.
    """
    path = paths.boot_id
    try:
        text = read_file(path, _BOOT_ID_SIZE, calls=calls)
    except OSError as error:
        raise BackendUnavailableError(
            f"the boot id {path} cannot be read: {error_name(error)}; without it nobody can tell "
            "of which boot a runtime log is (is /proc mounted here?)"
        ) from error
    if not _BOOT_ID.fullmatch(text):
        raise BackendError(f"the boot id {path} is no UUID: it begins with {text[:16]!r}")
    return text.decode().strip()
