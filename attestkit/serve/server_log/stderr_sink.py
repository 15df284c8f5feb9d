"""Sink of log lines: standard error, which may be slow, full or closed.

The event loop writes here, so a write must not block. After poll() reports a pipe or socket as
writable, it accepts at least PIPE_BUF bytes; lines are therefore written in pieces of at most that
size. Lines that cannot be written are dropped and counted, and the count is written as soon as the
reader continues.

No caller waits for another one, which could be the same thread, interrupted by a destructor or a
signal handler. The caller that is writing also writes the lines of the others.
"""

import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

LONGEST_LINE = select.PIPE_BUF
"""Bytes of a line with its line end; up to this size, writes to a pipe are atomic."""

_AT_ONCE = 64 * 1024  # bytes of one write to a file
_WAITING = 4096  # lines that may wait for the writing caller


class StderrSink:
    """Non-blocking writer of lines to a file descriptor; thread-safe.

    Args:
        descriptor: File descriptor to write to. It stays open, and its flags do not change, because
            other programs may share it.
        format_dropped: Returns the line that reports the number of dropped lines.
    """

    def __init__(self, descriptor: int, format_dropped: Callable[[int], bytes]) -> None:
        self.format_dropped = format_dropped
        self.dropped: int = 0
        self._lock = threading.Lock()  # only acquired without waiting
        self._waiting: deque[bytes] = deque()
        self._refused: deque[int] = deque()  # numbers of lines that did not fit into `_waiting`
        self._rest = b""  # of a line that a terminal accepted partly
        self._descriptor = _own_terminal(descriptor)
        mode = os.fstat(self._descriptor).st_mode
        self._poll: select.poll | None = None
        if not stat.S_ISREG(mode):
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLOUT)

    def write(self, lines: Sequence[bytes], patience: float = 0.0) -> None:
        """Write or drop lines, which include their line ends.

        Args:
            lines: At most 4,096 lines of at most LONGEST_LINE bytes.
            patience: Seconds to wait for a slow reader, unless lines were dropped before.
        """
        room = max(0, _WAITING - len(self._waiting))
        self._waiting.extend(lines[:room])
        if len(lines) > room:
            self._refused.append(len(lines) - room)
        # The owner of the lock checks again after releasing it, so that no line is left behind.
        while self._lock.acquire(blocking=False):
            try:
                self._write([*_drain_queue(self._waiting)], patience)
                self.dropped += sum(_drain_queue(self._refused))
            finally:
                self._lock.release()
            if not (self._waiting or self._refused):
                return

    def _write(self, lines: Sequence[bytes], patience: float) -> None:
        if self.dropped:
            patience = 0.0
            if not self._put(self.format_dropped(self.dropped), patience):
                self.dropped += len(lines)
                return
            self.dropped = 0
        done = 0
        for piece, count in _join_lines(lines, LONGEST_LINE if self._poll else _AT_ONCE):
            if not self._put(piece, patience):
                self.dropped = len(lines) - done
                return
            done += count

    def _put(self, data: bytes, patience: float) -> bool:
        """Return whether `data` was written, or is next to be written.

        `patience` is the time in seconds to wait for a slow reader.
        """
        try:
            if self._rest and not self._drain(patience):
                return False
            if not self._is_ready(patience):
                return False
            self._rest = data[os.write(self._descriptor, data) :]
        except OSError:  # closed, or the disk is full
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


def _drain_queue(queue: deque[T]) -> Iterator[T]:
    """Yield the current items of a queue, without later ones."""
    for _ in range(len(queue)):
        yield queue.popleft()


def _join_lines(lines: Sequence[bytes], most: int) -> Iterator[tuple[bytes, int]]:
    """Yield lines joined to pieces of at most `most` bytes, each with its number of lines."""
    first = size = 0
    for index, line in enumerate(lines):
        if size and size + len(line) > most:
            yield b"".join(lines[first:index]), index - first
            first, size = index, 0
        size += len(line)
    if size:
        yield b"".join(lines[first:]), len(lines) - first


def _own_terminal(descriptor: int) -> int:
    """Return a non-blocking descriptor of a terminal, which a user may stop; else `descriptor`.

    The terminal is opened again, because other programs share the inherited descriptor's flags.
    """
    if not os.isatty(descriptor):
        return descriptor
    try:
        return os.open(
            os.ttyname(descriptor), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        )
    except OSError:  # owned by another user, as after su
        return descriptor
