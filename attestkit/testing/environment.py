"""Environment variables that several set one over the other, and take back in any order."""

import os
import threading
from typing import Final, NamedTuple

__all__ = ["restore", "setenv"]


class _Layers(NamedTuple):
    """Who has set a variable to what; the last one counts."""

    before: str | None  # of all of them
    values: dict[object, str]  # by owner


_lock: Final = threading.Lock()
_variables: Final[dict[str, _Layers]] = {}


def setenv(owner: object, name: str, value: str) -> None:
    """Set a variable until `restore` is called for the owner, or another sets it."""
    with _lock:
        layers = _variables.setdefault(name, _Layers(os.environ.get(name), {}))
        layers.values.pop(owner, None)  # to the end
        layers.values[owner] = os.environ[name] = value


def restore(owner: object) -> None:
    """Take back what an owner has set, wherever it stands among what others have.

    A variable that somebody else has changed meanwhile is left to them.
    """
    with _lock:
        for name, layers in tuple(_variables.items()):
            if owner not in layers.values:
                continue
            shown = next(reversed(layers.values.values()))
            del layers.values[owner]
            rest = next(reversed(layers.values.values()), layers.before)
            if os.environ.get(name) == shown:
                _put(name, rest)
            if not layers.values:
                del _variables[name]


def _put(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
