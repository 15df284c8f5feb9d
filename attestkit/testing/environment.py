"""Environment variables with several overlapping settings that are undone in any order."""

import os
import threading
from typing import Final, NamedTuple


class _ForeignSetting:
    """Owner of a value that other code set between two calls of `setenv`.

    The value is restored when the later settings are undone.
    """


class _Settings(NamedTuple):
    """The settings of one variable, of which the last is in effect."""

    before: str | None  # the original value
    values: dict[object, str | None]  # by owner or `_ForeignSetting`, oldest first

    @property
    def effective(self) -> str | None:
        """The value by the last setting (None: unset), unless changed without this module."""
        return next(reversed(self.values.values()), self.before)


_lock: Final = threading.Lock()
_variables: Final[dict[str, _Settings]] = {}


def setenv(owner: object, name: str, value: str) -> None:
    """Set the environment variable `name` to `value` until `restore(owner)`.

    Any hashable object can be an owner. Of the values that several owners set, the last counts.
    """
    with _lock:
        now = os.environ.get(name)
        settings = _variables.setdefault(name, _Settings(now, {}))
        if now != settings.effective:
            settings.values[_ForeignSetting()] = now  # restored after this owner's value
        settings.values.pop(owner, None)  # so that it moves to the end
        settings.values[owner] = os.environ[name] = value


def restore(owner: object) -> None:
    """Undo the settings of one owner of `setenv`; owners may do so in any order.

    A variable that other code has changed since then keeps its value.
    """
    with _lock:
        for name, settings in tuple(_variables.items()):
            if owner not in settings.values:
                continue
            effective = settings.effective
            del settings.values[owner]
            if os.environ.get(name) == effective:
                _put(name, settings.effective)
            while settings.values and isinstance(next(reversed(settings.values)), _ForeignSetting):
                settings.values.popitem()  # no longer below a setting of this module
            if not settings.values:
                del _variables[name]


def _put(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
