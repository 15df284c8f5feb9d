"""Test support: simulated TEEs for code that uses attestkit, and a contract test for backends.

pytest provides the fixtures `tee`, `tee_session` and `tee_factory`; other programs use
`SimulatedTee` as a context manager. Packages with their own backend subclass `BackendContract`.
The modules are loaded on first use.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.testing.contract import BackendContract
    from attestkit.testing.tee import SimulatedTee

__all__ = ["BackendContract", "SimulatedTee"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__, {"contract": ["BackendContract"], "tee": ["SimulatedTee"]}
    )
