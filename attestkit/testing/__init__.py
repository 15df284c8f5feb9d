"""For tests of code that uses attestkit: simulated TEEs, and what every backend must keep to.

Whoever has pytest finds the fixtures `tee`, `tee_session` and `tee_factory` without more ado; in
other programs a `SimulatedTee` is a context manager. `BackendContract` is for packages with a
backend of their own. Everything here is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attestkit.testing.contract import BackendContract
    from attestkit.testing.tee import SimulatedTee

__all__ = ["BackendContract", "SimulatedTee"]

_HOME = {"BackendContract": "contract", "SimulatedTee": "tee"}


if not TYPE_CHECKING:  # to whom every name would be there

    def __getattr__(name: str) -> object:
        """Load what is asked for, once."""
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
