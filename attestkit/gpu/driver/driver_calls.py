"""Calls of driver libraries with a time limit.

A call into a driver that hangs cannot be cancelled, so each call has a thread of its own, which is
left behind if the call exceeds its time limit. Their number is bounded.
"""

import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from attestkit.errors import BackendBusyError

T = TypeVar("T")

MAX_HANGING: Final = 4  # threads left behind, in this process
_lock = threading.Lock()
_hanging = 0


class _Call(Generic[T]):
    """A call in a thread; `left` is protected by the module's lock."""

    def __init__(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> None:
        self._function = function
        self._arguments = arguments
        self.done = threading.Event()
        self.left = False  # whether the thread counts as hanging
        self.result: T
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self._function(*self._arguments)
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self.error = error
        self.done.set()
        _forget(self)


def _forget(call: _Call[Any]) -> None:
    """Stop counting a thread that was left behind and has ended."""
    global _hanging  # noqa: PLW0603 - threads of all sessions
    with _lock:
        if call.left:
            call.left = False
            _hanging -= 1


def call_driver(subject: str, limit: float, function: Callable[..., T], *arguments: Any) -> T:
    """Return the result of a function of a driver library, or raise its exception.

    Args:
        subject: What is called, for errors.
        limit: Time limit in seconds.
        function: The function.
        arguments: Its arguments.

    Raises:
        BackendBusyError: If the call exceeds the time limit, or `MAX_HANGING` earlier calls still
            hang.
    """
    global _hanging  # noqa: PLW0603 - threads of all sessions
    with _lock:
        if _hanging >= MAX_HANGING:
            text = f"{subject}: {_hanging} earlier calls of the driver hang; restart the process"
            raise BackendBusyError(text, reason="device")
    call = _Call(function, arguments)
    threading.Thread(target=call.run, name=f"driver: {subject}", daemon=True).start()
    if not call.done.wait(limit):
        with _lock:
            if not call.done.is_set():
                call.left = True
                _hanging += 1
                text = f"{subject}: no answer of the driver within {limit:g} s; see the kernel log"
                raise BackendBusyError(text, reason="timed_out")
    if call.error is not None:
        raise call.error
    return call.result


class DriverSession:
    """Calls of a driver library with a time limit; notes whether one of them hangs."""

    def __init__(self, time_limit: float) -> None:
        """Create a session whose calls take at most `time_limit` seconds each."""
        self._limit = time_limit
        self._hangs = False

    def _call(self, subject: str, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return call_driver(subject, self._limit, function, *arguments)
        except BackendBusyError:
            self._hangs = True
            raise
