"""The runtime log of this boot's events, for a guest whose register the caller provides."""

import os
import threading

from attestkit.backends.linux.boot_id import read_boot_id
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls
from attestkit.errors import UsageError
from attestkit.event_log.journal import LOCK, Journal, RegisterAccess, RuntimeLog
from attestkit.event_log.journal_files import OsFolder


class GuestJournal:
    """The log in the kernel's `paths`, created by the first use. Thread-safe, but not fork-safe.

    Args:
        paths: The kernel's paths.
        register: Access to the register.
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
            version: Version of the event digests, 1 or 2. None uses that of this boot's events,
                or 1 if there are none. Only the first call uses this argument; it creates the log.

        Raises:
            UsageError: If this object is closed or was created before a fork.
            BackendError: If the boot id cannot be read or is malformed.
        """
        if self._process != os.getpid():  # a child process would share the lock
            text = "journal: not usable after a fork; create another backend"
            raise UsageError(text, reason="wrong_process")
        with self._mutex:
            if self._closed:
                raise UsageError("backend: closed", reason="closed")
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
