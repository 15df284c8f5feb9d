"""The options that write what it takes to believe a simulated TEE, for whoever tests a verifier."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from attestkit.cli.options.click_types import PATH, gathered
from attestkit.cli.output.write_output import is_stdout, write_output
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from attestkit.backends.base import Backend

__all__ = ["SimulatedTrust", "simulated_trust_options"]

_ANCHOR: Final = "--save-trust-anchor"
_COLLATERAL: Final = "--save-collateral"


class SimulatedTrust(NamedTuple):
    """Where to write it."""

    anchor: Path | None
    collateral: Path | None

    def outputs(self) -> tuple[tuple[str, Path | None], ...]:
        """Return each with its option; UsageError if one is stdout."""
        found = ((_ANCHOR, self.anchor), (_COLLATERAL, self.collateral))
        for option, path in found:
            if path is not None and is_stdout(path):
                raise UsageError(f"{option} {path}: stdout has what was asked for; name a file")
        return found

    def write(self, backend: "Backend") -> None:
        """Write what was asked for.

        Raises:
            UsageError: The backend is no simulator, or a file cannot be written.
            UnsupportedError: It has no collateral, as an SEV-SNP guest.
        """
        if self == (None, None):
            return
        backend = getattr(backend, "of", None) or backend  # what --record records
        anchor: bytes | None = getattr(backend, "trust_anchor", None)
        collateral: Callable[[], Any] | None = getattr(backend, "collateral", None)
        if not backend.simulated or anchor is None or collateral is None:
            raise UsageError(
                f"{_ANCHOR} and {_COLLATERAL} are of the simulator, and this is {backend.name}"
            )
        if self.anchor is not None:
            from attestkit._crypto.pem import armour  # late: few write it

            write_output(_ANCHOR, self.anchor, armour("CERTIFICATE", anchor))
        if self.collateral is not None:
            write_output(_COLLATERAL, self.collateral, collateral().to_json())


simulated_trust_options: Final = gathered(
    "trust",
    (
        click.option(
            _ANCHOR,
            "anchor",
            metavar="FILE",
            type=PATH,
            help="Simulator: write its root there, for attestkit verify --trust-anchor.",
        ),
        click.option(
            _COLLATERAL,
            "collateral",
            metavar="FILE",
            type=PATH,
            help="Simulator: write its collateral there, for attestkit verify --collateral.",
        ),
    ),
    SimulatedTrust,
)
