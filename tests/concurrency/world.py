"""Copies of attestkit's modules, with the real code and locks that the stage controls.

    world = World("attestkit._system.fifo_lock", "attestkit.event_log.journal_protocols")
    turns = world["attestkit._system.fifo_lock"].FifoLock()

Imports between the copied modules resolve to the copies, all others to the originals. An `edit`
changes a copy's text, so that a test can show which fault is found without a lock.
"""

import builtins
import importlib
from collections.abc import Callable, Sequence
from importlib.abc import InspectLoader
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any, Final

from tests.concurrency.locks import THREADING, Future, OsLocks

_STAND_INS: Final[dict[str, Any]] = {
    "_thread": SimpleNamespace(**THREADING),
    "concurrent.futures": SimpleNamespace(Future=Future),
    "fcntl": OsLocks(),
    "threading": SimpleNamespace(**THREADING),
}


class _Edited(InspectLoader):
    """Loads a module from a given text."""

    def __init__(self, text: str, file: str) -> None:
        self._text, self._file = text, file

    def get_source(self, fullname: str) -> str:
        """Return the text."""
        del fullname
        return self._text

    def get_code(self, fullname: str) -> CodeType:
        """Return the compiled text, with its file name."""
        return compile(self.get_source(fullname), self._file, "exec")


class World:
    """Copies of the modules `names`, created on first access."""

    def __init__(self, *names: str, edit: Callable[[str], str] = str) -> None:
        self._names = names
        self._edit = edit
        self._copies: dict[str, ModuleType] = {}
        self._builtins = {**vars(builtins), "__import__": self._import}

    @property
    def files(self) -> frozenset[str]:
        """The files of the copied modules."""
        return frozenset(str(importlib.import_module(name).__file__) for name in self._names)

    @property
    def first(self) -> Any:
        """The copy of the first module."""
        return self[self._names[0]]

    def __getitem__(self, name: str) -> Any:
        if name not in self._copies:
            original = importlib.import_module(name)
            assert original.__file__ is not None
            copy = ModuleType(name, original.__doc__)
            copy.__dict__.update(
                __builtins__=self._builtins, __file__=original.__file__, __package__=""
            )
            if hasattr(original, "__path__"):
                copy.__path__ = original.__path__
            self._copies[name] = copy
            text = self._edit(Path(original.__file__).read_text())
            _Edited(text, original.__file__).exec_module(copy)
        return self._copies[name]

    def _import(
        self,
        name: str,
        module: Any = None,
        scope: Any = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        if name in _STAND_INS and (fromlist or "." not in name):
            return _STAND_INS[name]
        if name in self._names and fromlist:
            return self[name]
        return builtins.__import__(name, module, scope, fromlist, level)
