"""Calls that cannot be cancelled, with a time limit.

A call runs in a thread of its own. If it exceeds its time limit, the thread continues, and its
result is ignored; the number of such threads is limited.
"""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from attestkit._system.fork_safety import call_now_and_after_fork

T = TypeVar("T")


class CallHangsError(TimeoutError):
    """A call exceeds its time limit (`earlier` is 0), or is refused while `earlier` calls hang."""

    def __init__(self, earlier: int = 0) -> None:
        super().__init__("timed out")
        self.earlier = earlier


class BoundedCalls:
    """Calls of one kind, refused while `most` that exceeded their time limit still run.

    Thread-safe.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        call_now_and_after_fork(self._forget_parent)

    def _forget_parent(self) -> None:
        """Create the lock, and forget the threads of a parent process."""
        self._lock = threading.Lock()
        self.hanging: int = 0  # threads left behind

    def call(self, name: str, seconds: float, function: Callable[..., T], *arguments: object) -> T:
        """Return the result of a function, or raise its exception.

        Args:
            name: Name of the thread.
            seconds: Time limit of the call.
            function: The function.
            arguments: Its arguments.

        Raises:
            CallHangsError: If the call exceeds the time limit, or too many earlier calls hang.
        """
        with self._lock:
            if self.hanging >= self._most:
                raise CallHangsError(self.hanging)
        found: list[Any] = []
        done, is_left = threading.Event(), False

        def run() -> None:
            try:
                found.extend((function(*arguments), None))
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                found.extend((None, error))
            done.set()
            with self._lock:
                self.hanging -= is_left

        threading.Thread(target=run, name=name, daemon=True).start()
        if not done.wait(seconds):
            with self._lock:
                is_left = not done.is_set()
                self.hanging += is_left
            if is_left:
                raise CallHangsError
        result, error = found
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return] # what `function` returned
