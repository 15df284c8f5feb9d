"""Test support: simulated TEEs for code that uses attestkit, and a contract test for backends.

pytest provides the fixtures `tee`, `tee_session`, `tee_factory`, `attested_server`, `kms` and
`kms_factory`; other programs use `SimulatedTee` and `AttestedServer` as context managers. Packages
with their own backend subclass `BackendContract`. The modules are loaded on first use.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.testing.attested_server import AttestedServer
    from attestkit.testing.contract import BackendContract
    from attestkit.testing.tee import SimulatedTee

__all__ = ["AttestedServer", "BackendContract", "SimulatedTee"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "attested_server": ["AttestedServer"],
            "contract": ["BackendContract"],
            "tee": ["SimulatedTee"],
        },
    )
