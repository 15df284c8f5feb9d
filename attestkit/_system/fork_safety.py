"""Locks and pending results of objects that a forked process continues to use.

A fork copies all objects, but only the thread that forks. In the child, a lock that another thread
held is never released, and a result that another thread computed never arrives.
"""

import os
import weakref
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, Final

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


def _after_fork() -> None:
    for reference, function in list(_methods.values()):
        if (found := reference()) is not None:
            function(found)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
