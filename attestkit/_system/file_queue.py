"""A first-in, first-out queue for a file lock, shared by threads of several programs.

`flock` is not fair: it wakes all waiters, and the thread that has just released the lock often
acquires it again. So each thread takes a ticket before it requests the journal's lock, and waits
for the ticket before its own. The queue is advisory: mutual exclusion depends on the lock alone,
which other programs, such as the dstack guest agent, take without a ticket.

The file contains the last ticket number. A ticket is a locked byte of the file, which the kernel
unlocks when the program dies. A thread waits for the previous ticket by locking its byte. A program
that is stopped (Ctrl-Z) while it has a ticket or the lock blocks the programs after it.
"""

import contextlib
import fcntl
import os
from struct import Struct
from threading import get_ident
from typing import Final

from attestkit._system.untrusted_files import open_regular

_FLOCK: Final = Struct("hhqqi0q")  # struct flock: type, whence, start, length, pid
_COUNTER: Final = 0  # byte whose lock guards the ticket number
_FIRST: Final = 8  # byte of ticket 0
_NUMBERS: Final = 1 << 62


class FileQueue:
    """A queue in the file `path`, which is created if its folder exists.

    Each thread has a file descriptor of its own, so that threads of a process are ordered, too.
    Needs open file description locks (Linux); without them, or if the file cannot be used, `enter`
    returns at once.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptors: dict[int, int] = {}  # by thread ID
        self._spare: list[int] = []  # open descriptors that are not in use
        self._closed = False

    def enter(self) -> None:
        """Wait until all threads that entered earlier, in any process with this file, have left.

        Call `leave` afterwards, even if this call is interrupted by an exception, such as
        KeyboardInterrupt: the thread may have a ticket already.
        """
        if hasattr(fcntl, "F_OFD_SETLKW"):
            try:
                fd = self._descriptors[get_ident()] = self._open()
                _lock(fd, self._take_ticket(fd) - 1)
            except OSError:
                self.leave()

    def _open(self) -> int:
        try:
            return self._spare.pop()
        except IndexError:
            return open_regular(self._path, os.O_RDWR | os.O_CREAT)

    def _take_ticket(self, fd: int) -> int:
        """Take the next ticket; return the offset of its byte, locked before the number is visible.

        `fd` is this thread's descriptor of the queue's file.
        """
        _lock(fd, _COUNTER)
        number = (int.from_bytes(os.pread(fd, 8, 0), "little") + 1) % _NUMBERS
        os.pwrite(fd, number.to_bytes(8, "little"), 0)
        _lock(fd, _FIRST + number)
        _unlock(fd, _COUNTER, 1)
        return _FIRST + number

    def leave(self) -> None:
        """Return the ticket; do nothing if this thread has none."""
        thread = get_ident()
        fd = self._descriptors.get(thread)
        if fd is None:
            return
        try:
            _unlock(fd, 0, 0)
        except BaseException as error:
            del self._descriptors[thread]
            os.close(fd)  # releases the locks, so that an interrupt does not block later threads
            if not isinstance(error, OSError):
                raise
        else:
            del self._descriptors[thread]
            self._spare.append(fd)
            if self._closed:
                self.close()

    def close(self) -> None:
        """Close descriptors of threads that are not in the queue; `leave` closes the others."""
        self._closed = True
        with contextlib.suppress(IndexError):
            while True:
                os.close(self._spare.pop())


def _lock(fd: int, byte: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))


def _unlock(fd: int, start: int, size: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, size, 0))
