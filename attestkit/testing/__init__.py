"""Test support: simulated TEEs for code that uses attestkit, and a contract test for backends.

pytest provides the fixtures `tee`, `tee_session` and `tee_factory`; other programs use
`SimulatedTee` as a context manager. Packages with their own backend subclass `BackendContract`.
The modules are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attestkit.testing.contract import BackendContract
    from attestkit.testing.tee import SimulatedTee

__all__ = ["BackendContract", "SimulatedTee"]

_HOME = {"BackendContract": "contract", "SimulatedTee": "tee"}


if not TYPE_CHECKING:  # otherwise type checkers would accept every name

    def __getattr__(name: str) -> object:
        """Import a public name on first use."""
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
