"""Transports to a TPM: a device of Linux, or a connected stream such as that of swtpm.

A transport carries one command at a time: the whole command, then the whole response. Its lock is
re-entrant, so that a caller can exclude other threads for several commands.
"""

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from attestkit._system.fifo_lock import FifoLock
from attestkit.backends.linux.device_errors import (
    Meaning,
    busy,
    error_name,
    failed,
    translate_errno,
    unavailable,
)
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls
from attestkit.backends.tpm.frames import HEADER_SIZE, MAX_FRAME, frame_size
from attestkit.errors import BackendError, FormatError, UsageError

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import BackendReason

T = TypeVar("T")

_INTERRUPTIONS: Final = 100  # retries of a system call after EINTR
_GONE: Final[Meaning] = (unavailable, "missing", "the TPM was removed")
_BROKEN: Final[Meaning] = (
    failed,
    "io_error",
    "the TPM's driver failed; see the kernel log (dmesg)",
)
_REFUSED: Final = "the kernel refused the command: truncated, or with a handle that is not loaded"
MEANINGS: Final[Mapping[int, Meaning]] = {
    errno.EBUSY: (busy, "device", "an earlier response was not read; retry"),
    errno.EINVAL: (failed, "io_error", _REFUSED),
    errno.ENODEV: _GONE,
    errno.ENXIO: _GONE,
    errno.EPIPE: _BROKEN,
    errno.ETIME: _BROKEN,
    errno.EIO: _BROKEN,
}


class TpmTransport(Protocol):
    """A device or connection by which commands reach one TPM. Thread-safe."""

    path: str  # for errors

    @property
    def lock(self) -> FifoLock:
        """The lock that is held during a command; callers may hold it for several."""
        ...

    def exchange(self, command: bytes, seconds: float) -> bytes:
        """Send a command and return the response, 10 to 4096 bytes.

        Args:
            command: The whole frame.
            seconds: Time limit in seconds.

        Raises:
            BackendUnavailableError: If the TPM is no longer available.
            BackendBusyError: If the response does not come in time.
            BackendError: If the exchange fails, or the response has an invalid size.
            UsageError: If the transport is closed.
        """
        ...

    def close(self) -> None:
        """Close the device or connection; a second call has no effect."""


class DeviceTransport:
    """A TPM's device node, such as /dev/tpmrm0; opened by the first command.

    The kernel carries one command per write and one response per read. After an error the node is
    closed, which makes the kernel drop the pending response, and opened again by the next command.
    After a fork, a child process would read responses to commands of its parent, so it is refused.

    Args:
        path: The device node.
        open_node: Opens it without blocking for reading and writing; returns its descriptor.
        calls: The system calls.
        clock: Returns seconds of a monotonic clock.
    """

    def __init__(
        self,
        path: str,
        open_node: Callable[[], int],
        *,
        calls: DeviceCalls = REAL_CALLS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self._lock: FifoLock = FifoLock()
        self._open_node = open_node
        self._calls = calls
        self._clock = clock
        self._fd: int | None = None
        self._closed = False
        self._process = os.getpid()

    @property
    def lock(self) -> FifoLock:
        """The lock that is held during a command.

        Raises:
            UsageError: After a fork: a thread of the parent may have had it (`wrong_process`).
        """
        self._check_process()
        return self._lock

    def open(self) -> None:
        """Open the node now; later calls have no effect.

        Raises:
            BackendUnavailableError: If the node is missing or not accessible.
            BackendError: If it cannot be opened for another reason.
            UsageError: If the transport is closed, or was created before a fork.
        """
        self._check_process()
        with self._lock:
            self._descriptor()

    def _check_process(self) -> None:
        """Raise UsageError after a fork, before the lock: a thread of the parent may have it."""
        if self._process != os.getpid():
            text = f"{self.path}: opened in another process; open it again after a fork"
            raise UsageError(text, reason="wrong_process")

    def _descriptor(self) -> int:
        if self._closed:
            raise UsageError(f"{self.path}: it is closed; open it again", reason="closed")
        if self._fd is None:
            self._fd = self._open_node()
        return self._fd

    def exchange(self, command: bytes, seconds: float) -> bytes:
        """Send the frame `command` and return the response, at most `seconds` later.

        Errors are those of `TpmTransport.exchange`.
        """
        self._check_process()
        with self._lock:
            fd = self._descriptor()
            deadline = self._clock() + seconds
            try:
                self._write(fd, command)
                self._wait(fd, deadline, seconds)
                return self._read(fd)
            except BaseException:
                self._drop()
                raise

    def _write(self, fd: int, command: bytes) -> None:
        """Write a command to `fd`; it does not block, so the response may not be there yet."""
        written = self._call("command not sent", lambda: self._calls.write(fd, command))
        if written != len(command):
            text = f"{written} of {len(command)} bytes of a command were written; retry"
            raise failed(self.path, text, "io_error")

    def _wait(self, fd: int, deadline: float, seconds: float) -> None:
        # Before Linux 5.0, O_NONBLOCK has no effect: the command has ended, and poll returns.
        waiting = select.poll()
        waiting.register(fd, select.POLLIN)
        left = max(deadline - self._clock(), 0)
        if not waiting.poll(left * 1000):
            raise _timed_out(self.path, seconds)

    def _read(self, fd: int) -> bytes:
        response = self._call("no response", lambda: self._calls.read(fd, MAX_FRAME + 1))
        if not response:
            raise failed(self.path, "empty response; retry", "truncated")
        return check_response(self.path, response)

    def _call(self, problem: str, call: Callable[[], T]) -> T:
        """Return the result of the system call `call`; call again after EINTR.

        Raises:
            BackendError: If it fails; the text begins with `problem`.
        """
        for _ in range(_INTERRUPTIONS):
            try:
                return call()
            except InterruptedError:
                continue
            except OSError as error:
                raise translate_errno(self.path, problem, error, MEANINGS) from error
        raise busy(self.path, f"{problem}: interrupted repeatedly; retry", "interrupted")

    def _drop(self) -> None:
        """Close the descriptor, which may have a pending response."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def close(self) -> None:
        """Close the node, after a command in progress; a second call has no effect.

        After a fork it has no effect in the child: the node belongs to the parent process.
        """
        if self._process != os.getpid():
            return
        with self._lock:
            self._closed = True
            self._drop()


class StreamTransport:
    """A connected stream socket with a TPM at its other end, such as swtpm (`swtpm socket --fd`).

    After an error or a timeout the connection is closed, because a response may be pending.

    Args:
        connection: The socket; the transport owns it.
        path: Name of the TPM in errors.
        clock: Returns seconds of a monotonic clock.
    """

    def __init__(
        self,
        connection: socket.socket,
        path: str = "TPM",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.lock: FifoLock = FifoLock()
        self._connection: socket.socket | None = connection
        self._clock = clock

    def exchange(self, command: bytes, seconds: float) -> bytes:
        """Send the frame `command` and return the response, at most `seconds` later.

        Errors are those of `TpmTransport.exchange`.
        """
        with self.lock:
            connection = self._connection
            if connection is None:
                raise UsageError(f"{self.path}: it is closed; connect again", reason="closed")
            deadline = self._clock() + seconds
            try:
                self._check_idle(connection)
                self._set_timeout(connection, deadline)
                connection.sendall(command)
                header = self._receive(connection, HEADER_SIZE, deadline)
                size = _frame_size(self.path, header)
                rest = self._receive(connection, size - HEADER_SIZE, deadline)
            except TimeoutError as error:
                self.close()
                raise _timed_out(self.path, seconds) from error
            except OSError as error:
                self.close()
                text = f"connection lost ({error_name(error)})"
                raise failed(self.path, text, "connection_lost") from error
            except BaseException:
                self.close()
                raise
            return check_response(self.path, header + rest)

    def _check_idle(self, connection: socket.socket) -> None:
        """Raise BackendError if bytes are pending, which would be read as the next response."""
        waiting = select.poll()
        waiting.register(connection, select.POLLIN)
        if waiting.poll(0):
            connection.settimeout(0)
            if connection.recv(1):
                raise failed(self.path, "it sent bytes without a command", "malformed_response")
            raise failed(self.path, "it closed the connection", "connection_lost")

    def _set_timeout(self, connection: socket.socket, deadline: float) -> None:
        left = deadline - self._clock()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)

    def _receive(self, connection: socket.socket, size: int, deadline: float) -> bytes:
        """Receive exactly `size` bytes; TimeoutError after `deadline`, in seconds of the clock."""
        pieces = b""
        while len(pieces) < size:
            self._set_timeout(connection, deadline)
            piece = connection.recv(size - len(pieces))
            if not piece:
                text = f"connection closed after {len(pieces)} of {size} bytes"
                raise failed(self.path, text, "connection_lost")
            pieces += piece
        return pieces

    def close(self) -> None:
        """Close the connection, after a command in progress; a second call has no effect."""
        with self.lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()


def check_response(path: str, response: bytes) -> bytes:
    """Return `response` unchanged if its size is that in its header; `path` names the TPM.

    Raises:
        BackendError: If the sizes differ, or are not 10 to 4096 bytes.
    """
    size = _frame_size(path, response[:HEADER_SIZE])
    if size != len(response):
        reason: BackendReason = "truncated" if len(response) < size else "malformed_response"
        raise failed(path, f"response has {len(response)} bytes, but {size} in its header", reason)
    return response


def _frame_size(path: str, header: bytes) -> int:
    with reading(path):
        return frame_size(header)


def malformed(path: str, error: FormatError) -> BackendError:
    """Return the error of a malformed response of the TPM `path`, with the text of `error`."""
    return failed(path, str(error), "malformed_response")


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Context manager: replace a FormatError of its `with` block, which reads a response.

    It raises BackendError instead, which names the TPM `path`.
    """
    try:
        yield
    except FormatError as error:
        raise malformed(path, error) from error


def _timed_out(path: str, seconds: float) -> BackendError:
    return busy(path, f"no response within {seconds:g} s; retry later", "timed_out")
