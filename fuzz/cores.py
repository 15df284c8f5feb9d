"""The package twice in one process: once over the compiled core, once over plain Python.

So a fuzzer compares what a caller sees, with all that is built on the core, and pays for no second
process.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

_NAMES = ("_native", "errors", "event_log", "quote")


class Package(NamedTuple):
    """One of the two, by its modules. Their types are alike but not the same."""

    native: Any
    errors: Any
    event_log: Any
    quote: Any


def _imported() -> Package:
    return Package(*[importlib.import_module(f"attestkit.{name}") for name in _NAMES])


def _taken_out() -> dict[str, ModuleType]:
    ours = [name for name in sys.modules if name.partition(".")[0] == "attestkit"]
    return {name: sys.modules.pop(name) for name in ours}


@contextmanager
def _plain_core_asked_for() -> Iterator[None]:
    """Ask for the plain core, of which no level can be asked: it has no kernels."""
    before = dict(os.environ)
    os.environ["ATTESTKIT_PURE_PYTHON"] = "1"
    os.environ.pop("ATTESTKIT_CPU", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def both() -> tuple[Package, Package]:
    """Return the package over the core that is chosen here, and over the plain one."""
    chosen = _imported()
    kept = _taken_out()
    try:
        with _plain_core_asked_for():
            plain = _imported()
    finally:
        _taken_out()
        sys.modules.update(kept)
    assert plain.native.CORE == "python"
    return chosen, plain
