"""Base class of the TDX backends: RTMRs, boot log and runtime events."""

import time
from collections.abc import Callable
from typing import Final

from attestkit.backends.linux.ccel import read_boot_log
from attestkit.backends.linux.guest_journal import GuestJournal
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls
from attestkit.backends.tdx.device import TdxDevice
from attestkit.backends.tdx.rtmr import RtmrAccess
from attestkit.event_log.journal import RegisterAccess, RuntimeLog

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
            BackendUnavailableError: If neither the RTMR file nor the device is accessible.
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
        """Return the boot log: the whole area with its padding; empty without a log.

        Raises:
            BackendUnavailableError: If the log exists but is not accessible.
            BackendError: If the CCEL table is invalid.
        """
        return read_boot_log(self._paths, calls=self._calls)

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the log of runtime events of this boot; every call returns the same object.

        The log reads RTMR3 from a new TD report or, if the device is not accessible, from the
        register's file in sysfs.

        Args:
            version: Version of the event digests, 1 or 2. None uses that of this boot's events,
                or 1 if there are none. Only the first call uses this argument; it creates the log.

        Raises:
            UsageError: If the backend is closed or was created before a fork.
            BackendError: If the boot id cannot be read or is malformed.
        """
        return self._runtime_log.open(version)

    def close(self) -> None:
        """Close the journal and release its lock. A second call has no effect."""
        self._runtime_log.close()
