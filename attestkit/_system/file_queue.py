"""A queue of threads of several programs before one lock, in the order they came.

`flock` wakes all who wait and lets the quickest have it, often the one that has just let it go; of
eight threads in one program and one in another the latter then has half of all turns. So whoever
wants the journal's lock draws a number first and waits for the one before. It is a courtesy among
attestkit's programs: the lock is what counts, and others, such as the dstack guest agent, take it
without a number.

The file holds the last number drawn. A place in the queue is a locked byte of it, which the kernel
unlocks when its program dies; to wait is to ask for the lock on the byte before one's own. A
program that is stopped in the queue (Ctrl-Z) keeps those behind it waiting, as one that is stopped
while it has the lock does.
"""

import contextlib
import fcntl
import os
from struct import Struct
from threading import get_ident
from typing import Final

from attestkit._system.untrusted_files import open_regular

__all__ = ["FileQueue"]

_FLOCK: Final = Struct("hhqqi0q")  # struct flock: type, whence, start, length, pid
_COUNTER: Final = 0  # byte whose lock guards the number
_FIRST: Final = 8  # byte of number 0
_NUMBERS: Final = 1 << 62


class FileQueue:
    """The queue in the file `path`, which is made where its folder exists.

    It orders threads too, since each place is an open file of its own. Locks of open files are
    Linux's; elsewhere, and where the file cannot be used, nobody gets a place and nobody waits.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._places: dict[int, int] = {}  # by thread its open file
        self._spare: list[int] = []  # open files that nobody uses
        self._closed = False

    def enter(self) -> None:
        """Wait until all who came before have left. `leave` is due, also after an interrupt."""
        if hasattr(fcntl, "F_OFD_SETLKW"):
            try:
                place = self._places[get_ident()] = self._open()
                _lock(place, self._draw(place) - 1)
            except OSError:
                self.leave()

    def _open(self) -> int:
        try:
            return self._spare.pop()
        except IndexError:
            return open_regular(self._path, os.O_RDWR | os.O_CREAT)

    def _draw(self, place: int) -> int:
        """Take the next number, and lock its byte before anybody can know of it."""
        _lock(place, _COUNTER)
        number = (int.from_bytes(os.pread(place, 8, 0), "little") + 1) % _NUMBERS
        os.pwrite(place, number.to_bytes(8, "little"), 0)
        _lock(place, _FIRST + number)
        _unlock(place, _COUNTER, 1)
        return _FIRST + number

    def leave(self) -> None:
        """Let the next one have its turn; nothing happens to a thread without a place."""
        me = get_ident()
        place = self._places.get(me)
        if place is None:
            return
        try:
            _unlock(place, 0, 0)
        except BaseException as error:
            del self._places[me]
            os.close(place)  # which unlocks as well
            if not isinstance(error, OSError):  # an interrupt: all who come after would wait
                raise
        else:
            del self._places[me]
            self._spare.append(place)
            if self._closed:
                self.close()

    def close(self) -> None:
        """Close what is open; what a place uses is closed when it is left."""
        self._closed = True
        with contextlib.suppress(IndexError):
            while True:
                os.close(self._spare.pop())


def _lock(place: int, byte: int) -> None:
    fcntl.fcntl(place, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))


def _unlock(place: int, start: int, size: int) -> None:
    fcntl.fcntl(place, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, size, 0))
