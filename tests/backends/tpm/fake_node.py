"""A device node of a TPM with the rules of the kernel's driver."""

import errno
import os
import socket
import threading
from collections.abc import Callable
from typing import Final

from attestkit.backends.linux.syscalls import DeviceCalls
from attestkit.backends.tpm.frames import HEADER_SIZE

Handler = Callable[[bytes], bytes | None]

DROPPED: Final = b"dropped"


class FakeNode:
    """One node, with one conversation for each descriptor, as of /dev/tpmrm0.

    Args:
        handler: Returns the response to a command; None: none comes.
    """

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._ends: dict[int, socket.socket] = {}  # the kernel's ends, by descriptor
        self._pending: set[int] = set()  # descriptors whose response was not read
        self._lock = threading.Lock()
        self.commands: list[bytes] = []
        self.opened: list[int] = []
        self.errors: list[int] = []  # errnos of the next system calls, before all else
        self.written: int | None = None  # in place of the size of a command

    @property
    def calls(self) -> DeviceCalls:
        """The system calls on the node."""
        return DeviceCalls(open_file=self._open, read=self._read, write=self._write)

    def open_node(self) -> int:
        """Open the node, as a transport does."""
        return self._open("/dev/tpmrm0", os.O_RDWR, None)

    def _open(self, path: str | os.PathLike[str], flags: int, folder: int | None) -> int:
        if flags & os.O_ACCMODE != os.O_RDWR:
            return os.open(path, flags, dir_fd=folder)  # of a log
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fd = ours.detach()
        if fd in self._ends:  # a number that is used again
            self._ends[fd].close()
        self._ends[fd] = theirs
        self._pending.discard(fd)
        self.opened.append(fd)
        return fd

    def close(self) -> None:
        """Close the kernel's ends."""
        for end in self._ends.values():
            end.close()

    def _fail(self) -> None:
        if self.errors and (number := self.errors.pop(0)):
            raise OSError(number, os.strerror(number))

    def _write(self, fd: int, command: bytes) -> int:
        self._fail()
        with self._lock:
            if fd in self._pending:
                raise OSError(errno.EBUSY, "an unread response")
            if len(command) < HEADER_SIZE or len(command) < int.from_bytes(command[2:6], "big"):
                raise OSError(errno.EINVAL, "a truncated command")
            self._pending.add(fd)
        self.commands.append(command)
        if (response := self._handler(command)) is not None:
            self._ends[fd].send(response)
        return len(command) if self.written is None else self.written

    def _read(self, fd: int, size: int) -> bytes:
        self._fail()
        with self._lock:
            self._pending.discard(fd)
        response = os.read(fd, size)
        return b"" if response == DROPPED else response
