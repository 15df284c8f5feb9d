"""Where lines of the log go: standard error, which may be slow, full, or gone.

The event loop writes here, so nobody may be waited for long. A pipe that is asked first takes at
least PIPE_BUF bytes at once, and so does a socket; lines are handed over in pieces of at most that
many. What cannot be handed over is dropped, counted, and told as soon as somebody reads again.

Nobody waits for whoever is writing: that may be the same thread, a destructor or a signal having
come in between. Who is writing takes the lines of the others along.
"""

import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

__all__ = ["LONGEST_LINE", "Sink"]

T = TypeVar("T")

LONGEST_LINE = select.PIPE_BUF
"""Bytes of a line with its end, so that no other process's line gets into it."""

_AT_ONCE = 64 * 1024  # bytes that are written to a file in one call
_WAITING = 4096  # lines that wait for whoever is writing


class Sink:
    """Takes lines for a file descriptor. Safe to be called from any thread.

    Args:
        descriptor: Stays open, and as it is: it may be shared with other programs.
        tell_dropped: Returns the line that says how many were dropped.
    """

    def __init__(self, descriptor: int, tell_dropped: Callable[[int], bytes]) -> None:
        self.tell_dropped = tell_dropped
        self.dropped: int = 0
        self._lock = threading.Lock()  # never waited for
        self._waiting: deque[bytes] = deque()
        self._refused: deque[int] = deque()  # how many lines found no place among those
        self._rest = b""  # of a line that a terminal took in part
        self._descriptor = _own_terminal(descriptor)
        mode = os.fstat(self._descriptor).st_mode
        self._poll: select.poll | None = None
        if not stat.S_ISREG(mode):
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLOUT)

    def write(self, lines: Sequence[bytes], patience: float = 0.0) -> None:
        """Hand lines over, each with its end, or drop them.

        Args:
            lines: Of at most LONGEST_LINE bytes; at most 4,096 of them.
            patience: Seconds to wait for a reader, unless it made us drop lines before.
        """
        room = max(0, _WAITING - len(self._waiting))
        self._waiting.extend(lines[:room])
        if len(lines) > room:
            self._refused.append(len(lines) - room)
        # Whoever has the lock looks again after giving it back, so that no line is left behind.
        while self._lock.acquire(blocking=False):
            try:
                self._write([*_taken(self._waiting)], patience)
                self.dropped += sum(_taken(self._refused))
            finally:
                self._lock.release()
            if not (self._waiting or self._refused):
                return

    def _write(self, lines: Sequence[bytes], patience: float) -> None:
        if self.dropped:
            patience = 0.0
            if not self._put(self.tell_dropped(self.dropped), patience):
                self.dropped += len(lines)
                return
            self.dropped = 0
        done = 0
        for piece, count in _packed(lines, LONGEST_LINE if self._poll else _AT_ONCE):
            if not self._put(piece, patience):
                self.dropped = len(lines) - done
                return
            done += count

    def _put(self, data: bytes, patience: float) -> bool:
        """Return whether all of `data` has gone, or will go before anything else does."""
        try:
            if self._rest and not self._drain(patience):
                return False
            if not self._is_ready(patience):
                return False
            self._rest = data[os.write(self._descriptor, data) :]
        except OSError:  # nobody will ever read it, or the disk is full
            return False
        return True

    def _drain(self, patience: float) -> bool:
        if self._is_ready(patience):
            self._rest = self._rest[os.write(self._descriptor, self._rest) :]
        return not self._rest

    def _is_ready(self, patience: float) -> bool:
        if self._poll is None:
            return True
        found = self._poll.poll(patience * 1000)
        return bool(found) and bool(found[0][1] & select.POLLOUT)


def _taken(queue: deque[T]) -> Iterator[T]:
    """Take what is in a queue now, and not what comes meanwhile."""
    for _ in range(len(queue)):
        yield queue.popleft()


def _packed(lines: Sequence[bytes], most: int) -> Iterator[tuple[bytes, int]]:
    """Return lines in pieces of at most `most` bytes, each with how many it has."""
    first = size = 0
    for index, line in enumerate(lines):
        if size and size + len(line) > most:
            yield b"".join(lines[first:index]), index - first
            first, size = index, 0
        size += len(line)
    if size:
        yield b"".join(lines[first:]), len(lines) - first


def _own_terminal(descriptor: int) -> int:
    """Return a descriptor that does not wait, if this is a terminal, which somebody may stop.

    It has to be opened anew: others have the old one, and would find themselves not waiting.
    """
    if not os.isatty(descriptor):
        return descriptor
    try:
        return os.open(
            os.ttyname(descriptor),
            os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC,
        )
    except OSError:  # somebody else's, as after su
        return descriptor
