"""Open file descriptions of a TPM's device nodes, before any simulated TPM.

Source: drivers/char/tpm/tpm-dev-common.c of Linux 6.12. A write is one whole command, and reads
give its response, whole or in pieces. OSErrors have the kernel's errno.
"""

from collections.abc import Callable
from errno import E2BIG, EBUSY, EINVAL
from os import strerror
from threading import RLock
from typing import TYPE_CHECKING, Final

from attestkit.backends.simulator.software_tpm.in_process import CommandExecutor

if TYPE_CHECKING:
    from typing_extensions import Self

HEADER: Final = 10
_LARGEST: Final = 4096  # bytes of a write


class TpmDeviceFile:
    """An open file description: one conversation with the TPM.

    Args:
        lock: Held during a command; shared by all openers.
    """

    def __init__(self, lock: RLock) -> None:
        self._lock = lock
        self._pending: bytes | OSError | None = None
        self._closed = False

    @property
    def readable(self) -> bool:
        """Whether a response is pending, as `poll` reports it."""
        return self._pending is not None

    def write(self, data: bytes) -> int:
        """Run a command; return the number of bytes taken, which is all.

        Raises:
            OSError: E2BIG for more than 4096 bytes; EBUSY if a response is pending; EINVAL if the
                command is shorter than its header or its size.
        """
        with self._lock:
            if len(data) > _LARGEST:
                raise OSError(E2BIG, strerror(E2BIG))
            if self._closed:
                raise OSError(EINVAL, strerror(EINVAL))
            if self._pending is not None:
                raise OSError(EBUSY, strerror(EBUSY))
            size = int.from_bytes(data[2:6], "big")
            if len(data) < HEADER or not HEADER <= size <= len(data):
                raise OSError(EINVAL, strerror(EINVAL))
            try:
                self._pending = self._run(data[:size])
            except OSError as error:
                self._pending = error  # the next read reports it
        return len(data)

    def read(self, size: int) -> bytes:
        """Return the response or its next piece; nothing if none is pending.

        Raises:
            OSError: If the command failed in the kernel, such as EINVAL for an unknown virtual
                handle.
        """
        with self._lock:
            pending, self._pending = self._pending, None
            if isinstance(pending, OSError):
                raise pending
            if pending is None:
                return b""
            self._pending = pending[size:] or None
            return pending[:size]

    def close(self) -> None:
        """End the conversation. A second call has no effect."""
        with self._lock:
            self._pending = None
            if not self._closed:
                self._closed = True
                self._release()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, command: bytes) -> bytes:
        """Return the response to a command of the size in its header."""
        raise NotImplementedError  # each node has its own

    def _release(self) -> None:
        """Release what this opener holds; called once."""


class RawNode:
    """The raw node, /dev/tpm0, which has one opener at a time.

    Args:
        tpm: The TPM behind it.
        lock: Held during a command.
    """

    def __init__(self, tpm: CommandExecutor, lock: RLock) -> None:
        self._tpm, self._lock = tpm, lock
        self._is_open = False

    def open(self) -> "RawFile":
        """Return the open file description.

        Raises:
            OSError: EBUSY if there is another one.
        """
        with self._lock:
            if self._is_open:
                raise OSError(EBUSY, strerror(EBUSY))
            self._is_open = True
        return RawFile(self._tpm, self._lock, self._released)

    def _released(self) -> None:
        self._is_open = False


class RawFile(TpmDeviceFile):
    """An open file description of /dev/tpm0: commands reach the TPM unchanged.

    Args:
        tpm: The TPM.
        lock: Held during a command.
        released: Called when it is closed.
    """

    def __init__(self, tpm: CommandExecutor, lock: RLock, released: Callable[[], None]) -> None:
        super().__init__(lock)
        self._tpm = tpm
        self._released = released

    def _run(self, command: bytes) -> bytes:
        return self._tpm.execute(command)

    def _release(self) -> None:
        self._released()
