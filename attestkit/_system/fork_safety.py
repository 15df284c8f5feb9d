"""Locks and pending results of objects that a forked process continues to use.

A fork copies all objects, but only the thread that forks. In the child, a lock that another thread
held is never released, and a result that another thread computed never arrives. A file lock that a
thread held is also that of the child, which has the file open, too.
"""

import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from types import MethodType
from typing import Any, Final, TypeVar

_T = TypeVar("_T")
_methods: Final[dict[object, tuple["weakref.ref[Any]", Callable[[Any], object]]]] = {}


def call_now_and_after_fork(method: Callable[[], object]) -> None:
    """Call a bound method now, and in each forked process as long as its object exists.

    Args:
        method: Creates the object's locks, and drops what only threads of the parent complete.
    """
    method()
    assert isinstance(method, MethodType)  # a bound method has its object and its function
    key = object()
    # Nothing written in Python runs when the object goes, which may be after the modules went.
    _methods[key] = weakref.ref(method.__self__, partial(_methods.pop, key)), method.__func__


class unlocked_property(cached_property[_T]):  # noqa: N801 - used like cached_property
    """A cached_property without a lock, also before Python 3.12; two threads may compute a value.

    Those Pythons have one lock for all objects of a class.
    """

    def __init__(self, func: Callable[[Any], _T]) -> None:
        super().__init__(func)
        self.lock: AbstractContextManager[None] = nullcontext()


def unlock_and_close(handle: int) -> None:
    """Release the `flock` of a file, and close it.

    Closing alone does not release it while a process that was forked meanwhile has the file open.
    """
    import fcntl  # lazy: not on Windows

    try:
        fcntl.flock(handle, fcntl.LOCK_UN)
    finally:
        os.close(handle)


def _after_fork() -> None:
    for reference, function in list(_methods.values()):
        if (found := reference()) is not None:
            function(found)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
