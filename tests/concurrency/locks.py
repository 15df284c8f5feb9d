"""Replacements for locks and threads: a waiting thread on the stage lets others run.

Outside of a run, and for other threads, waiting is not needed: only one thread uses them.
"""

import concurrent.futures
import fcntl as real_fcntl
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, TypeVar

from tests.concurrency.stage import Task, task_here

T = TypeVar("T")
_MAIN: Final = "the thread beside the stage"
_FLOCK: Final = struct.Struct("hhqqi0q")  # struct flock


def _get_owner() -> Task | str:
    return task_here() or _MAIN


class Lock:
    """As `threading.Lock`."""

    def __init__(self) -> None:
        self._owner: Task | str | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Acquire the lock."""
        task = task_here()
        if task:
            task.pause("a lock")
            if blocking:
                timed = timeout >= 0
                if not task.wait(lambda: self._owner is None, "a lock", timed=timed):
                    return False
        if self._owner is not None and not (task and task.leaving):
            assert task or not blocking, "a lock is held"
            return False
        self._owner = _get_owner()
        return True

    def release(self) -> None:
        """Release the lock."""
        if self._owner is None:
            raise RuntimeError("release unlocked lock")
        self._owner = None

    def locked(self) -> bool:
        """Return whether the lock is held."""
        return self._owner is not None

    def __enter__(self) -> Any:
        return self.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        task = task_here()
        if task is None or not task.leaving or self._owner == task:
            self.release()


class RLock(Lock):
    """As `_thread.RLock`, which may be inherited from."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Acquire the lock, again if this thread holds it."""
        if not self._is_owned() and not super().acquire(blocking, timeout):
            return False
        self._count += 1
        return True

    def release(self) -> None:
        """Release the lock once."""
        if not self._is_owned():
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1
        if not self._count:
            super().release()

    def _is_owned(self) -> bool:
        return self._owner == _get_owner()


class Event:
    """As `threading.Event`."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        """Set the event, and let all waiting threads run."""
        self._set = True

    def is_set(self) -> bool:
        """Return whether the event is set."""
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the event is set."""
        if task := task_here():
            task.pause("an event")
            task.wait(lambda: self._set, "an event", timed=timeout is not None)
        return self._set


class Future(concurrent.futures.Future[T]):
    """As `concurrent.futures.Future`, for a thread that waits for the result of another one."""

    def result(self, timeout: float | None = None) -> T:
        """Wait for the result."""
        if task := task_here():
            task.wait(self.done, "a result")
        return super().result(timeout)


class Thread:
    """As `threading.Thread`: an additional thread on the stage."""

    def __init__(self, *, target: Callable[[], object]) -> None:
        self._target = target
        self._task: Task | None = None

    def start(self) -> None:
        """Start the thread."""
        me = task_here()
        assert me is not None, "threads are started on the stage"
        self._task = me.stage.spawn(self._target)

    def join(self) -> None:
        """Wait for the end of the thread."""
        me, other = task_here(), self._task
        assert me is not None
        assert other is not None
        me.wait(lambda: other.ended, f"the end of thread {other.number}")


class OsLocks:
    """As the module `fcntl`: the kernel's locks, without blocking in the kernel."""

    def __getattr__(self, name: str) -> Any:
        return getattr(real_fcntl, name)

    @staticmethod
    def flock(fd: int, operation: int) -> None:
        """Lock or unlock an open file."""
        task = task_here()
        if task is not None and not operation & (real_fcntl.LOCK_NB | real_fcntl.LOCK_UN):
            task.pause("flock")
            task.wait(lambda: _is_free(fd, operation), "flock")
            operation |= real_fcntl.LOCK_NB
        real_fcntl.flock(fd, operation)

    @staticmethod
    def fcntl(fd: int, command: int, arg: Any = 0) -> Any:
        """Lock bytes of an open file, or run another command."""
        task = task_here()
        if task is not None and command == real_fcntl.F_OFD_SETLKW:
            task.pause("a byte's lock")
            task.wait(lambda: _is_unlocked(fd, arg), "a byte's lock")
            command = real_fcntl.F_OFD_SETLK
        return real_fcntl.fcntl(fd, command, arg)


def _is_free(fd: int, operation: int) -> bool:
    try:
        real_fcntl.flock(fd, operation | real_fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    real_fcntl.flock(fd, real_fcntl.LOCK_UN)
    return True


def _is_unlocked(fd: int, wanted: bytes) -> bool:
    answer: bytes = real_fcntl.fcntl(fd, real_fcntl.F_OFD_GETLK, wanted)
    return bool(_FLOCK.unpack(answer)[0] == real_fcntl.F_UNLCK)


THREADING: Final = {
    "Lock": Lock,
    "RLock": RLock,
    "Event": Event,
    "Thread": Thread,
    "get_ident": threading.get_ident,
    "local": threading.local,
}
