"""The package twice in one process: once over the compiled core, once over plain Python.

So a fuzzer compares what a caller sees, with all that is built on the core, and pays for no second
process.
"""

import importlib
import os
import sys
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import patch

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


def both() -> tuple[Package, Package]:
    """Return the package over the core that is chosen here, and over the plain one."""
    chosen = _imported()
    kept = _taken_out()
    try:
        with patch.dict(os.environ, ATTESTKIT_PURE_PYTHON="1"):
            os.environ.pop("ATTESTKIT_CPU", None)  # the plain core has no level to be asked for
            plain = _imported()
    finally:
        _taken_out()
        sys.modules.update(kept)
    assert plain.native.CORE == "python"
    return chosen, plain
