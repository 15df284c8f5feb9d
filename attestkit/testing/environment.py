"""Environment variables that several set one over the other, and take back in any order."""

import os
import threading
from typing import Final, NamedTuple

__all__ = ["restore", "setenv"]


class _Other:
    """Somebody who has set a variable without us, between two that did it here."""


class _Layers(NamedTuple):
    """Who has set a variable to what; the last one counts."""

    before: str | None  # of all of them
    values: dict[object, str | None]  # by owner, or `_Other`

    @property
    def shown(self) -> str | None:
        """What the variable is if nobody else has set it since."""
        return next(reversed(self.values.values()), self.before)


_lock: Final = threading.Lock()
_variables: Final[dict[str, _Layers]] = {}


def setenv(owner: object, name: str, value: str) -> None:
    """Set a variable until `restore` is called for the owner, or another sets it."""
    with _lock:
        now = os.environ.get(name)
        layers = _variables.setdefault(name, _Layers(now, {}))
        if now != layers.shown:
            layers.values[_Other()] = now  # what is there again once this owner's is gone
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
            shown = layers.shown
            del layers.values[owner]
            if os.environ.get(name) == shown:
                _put(name, layers.shown)
            while layers.values and isinstance(next(reversed(layers.values)), _Other):
                layers.values.popitem()  # theirs to take back, as before we set it
            if not layers.values:
                del _variables[name]


def _put(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
