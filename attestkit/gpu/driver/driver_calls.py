"""Calls of driver libraries with a time limit.

A call into a driver that hangs cannot be cancelled.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

from attestkit._system.bounded_calls import BoundedCalls, CallHangsError
from attestkit.errors import BackendBusyError

T = TypeVar("T")

MAX_HANGING: Final = 4  # threads left behind, in this process
_calls: Final = BoundedCalls(MAX_HANGING)


def call_driver(subject: str, limit: float, function: Callable[..., T], *arguments: Any) -> T:
    """Return the result of a function of a driver library, or raise its exception.

    Args:
        subject: Name of the call in errors.
        limit: Time limit in seconds.
        function: The function of the library.
        arguments: Positional arguments of the function.

    Raises:
        BackendBusyError: If the call exceeds the time limit, or `MAX_HANGING` earlier calls still
            hang.
    """
    try:
        return _calls.call(f"driver: {subject}", limit, function, *arguments)
    except CallHangsError as error:
        text = f"no answer of the driver within {limit:g} s; see the kernel log"
        if error.earlier:
            text = f"{error.earlier} earlier calls of the driver hang; restart the process"
        message, hang = f"{subject}: {text}", error.earlier > 0
        raise BackendBusyError(message, reason="device" if hang else "timed_out") from None


class DriverSession:
    """Calls of a driver library with a time limit; records whether one of them hangs."""

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
