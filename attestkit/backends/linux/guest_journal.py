"""The boot id of Linux, and the runtime log of this boot, whose register the caller provides."""

import os
import re
import threading
from typing import Final

from attestkit.backends.linux.device_errors import error_name, failed, unavailable
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, read_file
from attestkit.errors import UsageError
from attestkit.event_log.journal import LOCK, Journal, RegisterAccess, RuntimeLog
from attestkit.event_log.journal_files import OsFolder

_BOOT_ID: Final = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n?", re.ASCII)
_BOOT_ID_SIZE: Final = 37  # bytes, its newline included


def read_boot_id(paths: KernelPaths, *, calls: DeviceCalls = REAL_CALLS) -> str:
    """Return the boot id of the kernel, a UUID.

    Raises:
        BackendUnavailableError: If the file cannot be read.
        BackendError: If the file does not contain a UUID.
    """
    path = paths.boot_id
    try:
        data = read_file(path, _BOOT_ID_SIZE, calls=calls)
    except OSError as error:
        text = f"boot id: cannot be read ({error_name(error)}); mount /proc"
        raise unavailable(path, text, "unreadable") from error
    if not _BOOT_ID.fullmatch(data):
        raise failed(path, f"boot id: not a UUID: {data[:16]!r}", "malformed_response")
    return data.decode().strip()


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
