"""A lock whose waiters are served in the order they came: nobody starves, nobody overtakes.

`threading.RLock` lets the thread that releases it take it again before the one that was woken has
run; a program that asks in a loop so keeps its other threads waiting. Here a queue stands before
such a lock: only its head asks for the lock, and whoever releases comes behind all who wait.

An interrupt (Ctrl-C) while waiting costs a place, and never the lock. The end of a turn is the
lock's own, in C, because Python looks for interrupts where a function of Python's begins: an
`__exit__` written in Python can be over before its first line, and the lock kept for ever.
"""

import contextlib
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:

    class RLock:  # typeshed calls it final, which it is not, and leaves out what Condition uses
        """The lock that a thread may take again."""

        def acquire(self) -> bool:
            """Take it."""
            ...

        def release(self) -> None:
            """Let it go, as often as it was taken."""

        def _is_owned(self) -> bool: ...

        def __exit__(self, *_: object) -> None: ...

else:
    from _thread import RLock  # in C; that of threading is a function until 3.13

__all__ = ["SteppedTurns", "Turns"]

# Seconds after which a waiter looks for itself, in case an interrupt swallowed the wake-up.
_LOOK: Final = 1.0


class Turns(RLock):
    """A re-entrant lock, first come first served; a context manager.

    Whoever may have it already should look at `mine` rather than enter again: an interrupt right
    behind an inner entry would keep it.
    """

    def __init__(self) -> None:
        super().__init__()
        # A place is a lock, closed while its thread sleeps; only the head asks for the turn.
        self._queue: deque[Lock] = deque()

    @property
    def mine(self) -> bool:
        """True while this thread has the turn."""
        return self._is_owned()

    @property
    def waiting(self) -> int:
        """How many threads wait for the turn."""
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
            queue.popleft()  # this place: only the head gets here
            if queue:
                self._wake()
        except BaseException:
            if self._is_owned():
                self.release()
            self._quit(place)
            raise

    def _wait(self, place: Lock) -> None:
        """Sleep until `place` is the head."""
        place.acquire()
        # Whoever makes it the head opens it afterwards: it was closed before then, or is not asked.
        while self._queue[0] is not place:
            place.acquire(timeout=_LOOK)

    def _quit(self, place: Lock) -> None:
        """Leave the queue, wherever in it."""
        try:
            with contextlib.suppress(ValueError):  # it has left, or an interrupt came before it
                self._queue.remove(place)
        finally:
            self._wake()

    def _wake(self) -> None:
        """Open the place at the head of the queue; one whose thread is awake takes no harm."""
        with contextlib.suppress(IndexError, RuntimeError):  # nobody is there, or it is open
            self._queue[0].release()


class SteppedTurns(Turns):
    """Turns that begin and end with a step of somebody's.

    These end in Python, so an interrupt at that very moment keeps the turn with its thread.

    Args:
        enter: Called when a turn begins, and not when it is entered again within. If it raises,
            the turn is over.
        leave: Called when a turn ends.
    """

    def __init__(self, enter: Callable[[], None], leave: Callable[[], None]) -> None:
        super().__init__()
        self._enter = enter
        self._leave = leave
        self._depth = 0  # how often it was entered again

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
