"""A re-entrant lock that threads acquire in first-in, first-out order.

With `threading.RLock` the releasing thread can acquire the lock again before the thread that it
woke has run, so that a loop starves the other threads. Here threads wait in a queue; only its head
acquires the lock, and a thread that released it queues behind all others.

A thread that is interrupted (Ctrl-C) while waiting loses its place in the queue, and leaves no lock
held. The lock is released by the C method of `RLock`: Python delivers interrupts at the start of a
Python function, so an `__exit__` in Python could be aborted before its first line and leave the
lock held.
"""

import contextlib
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:

    class RLock:  # typeshed wrongly declares it final, and omits what Condition uses
        """`threading.RLock` as a base class, for type checkers only."""

        def acquire(self) -> bool:
            """Acquire the lock, waiting as long as necessary; return True."""
            ...

        def release(self) -> None:
            """Release the lock once."""

        def _is_owned(self) -> bool: ...

        def __exit__(self, *_: object) -> None: ...

else:
    from _thread import RLock  # the C class; threading.RLock is a function before Python 3.13

# Seconds after which a waiter checks its place, in case an interrupt lost the wake-up.
_CHECK_INTERVAL: Final = 1.0


class FifoLock(RLock):
    """Re-entrant FIFO lock; a context manager.

    Check `held` instead of entering again where possible: an interrupt directly after an inner
    entry would leave the lock held.
    """

    def __init__(self) -> None:
        super().__init__()
        # One lock per waiting thread, on which it sleeps; only the head acquires `self`.
        self._queue: deque[Lock] = deque()

    @property
    def held(self) -> bool:
        """Whether this thread holds the lock."""
        return self._is_owned()

    @property
    def waiting(self) -> int:
        """Number of threads that wait for the lock."""
        return len(self._queue)

    def __enter__(self) -> None:
        if self._is_owned():
            self.acquire()
            return
        queue, place = self._queue, Lock()
        try:
            queue.append(place)
            if queue[0] is not place:
                self._wait(place)
            self.acquire()
            queue.popleft()  # `place`: only the head gets here
            if queue:
                self._wake()
        except BaseException:
            if self._is_owned():
                self.release()
            self._quit(place)
            raise

    def _wait(self, place: Lock) -> None:
        """Sleep until `place`, this thread's entry of the queue, is the head."""
        place.acquire()
        # The thread that makes `place` the head releases it afterwards, so this cannot miss it.
        while self._queue[0] is not place:
            place.acquire(timeout=_CHECK_INTERVAL)

    def _quit(self, place: Lock) -> None:
        """Remove `place`, this thread's entry, from any position of the queue."""
        try:
            with contextlib.suppress(ValueError):  # it has left already, or never entered
                self._queue.remove(place)
        finally:
            self._wake()

    def _wake(self) -> None:
        """Wake the thread at the head of the queue; harmless if it is awake."""
        with contextlib.suppress(IndexError, RuntimeError):  # the queue is empty, or it is awake
            self._queue[0].release()


class HookedFifoLock(FifoLock):
    """FIFO lock with callbacks on the outermost acquire and release.

    It is released in Python, so an interrupt at that moment can leave it held by its thread.

    Args:
        enter: Called after the outermost acquire. If it raises, the lock is released.
        leave: Called before the outermost release.
    """

    def __init__(self, enter: Callable[[], None], leave: Callable[[], None]) -> None:
        super().__init__()
        self._enter = enter
        self._leave = leave
        self._depth = 0  # nested entries

    def __enter__(self) -> None:
        if self._is_owned():
            self._depth += 1
            return
        super().__enter__()
        try:
            self._depth = 0
            self._enter()
        except BaseException:
            self.release()
            raise

    def __exit__(self, *_: object) -> None:
        if self._depth:
            self._depth -= 1
            return
        try:
            self._leave()
        finally:
            self.release()
