"""Locks and pending results of objects that a forked process continues to use.

A fork copies all objects, but only the thread that forks. In the child, a lock that another thread
held is never released, and a result that another thread computed never arrives.
"""

import os
import weakref
from collections.abc import Callable
from typing import Final

_methods: Final["set[weakref.WeakMethod[Callable[[], object]]]"] = set()


def call_now_and_after_fork(method: Callable[[], object]) -> None:
    """Call a bound method now, and in each forked process as long as its object exists.

    Args:
        method: Creates the object's locks, and drops what only threads of the parent complete.
    """
    method()
    _methods.add(weakref.WeakMethod(method, _methods.discard))


def _after_fork() -> None:
    for reference in list(_methods):
        if (method := reference()) is not None:
            method()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
