"""Options that write the simulator's trust anchor and collateral, for verifier tests."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from attestkit.cli.options.click_types import PATH, group_options
from attestkit.cli.output.write_output import is_stdout, write_output
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from attestkit.backends.base import Backend

__all__ = ["TrustOutputs", "simulated_trust_options"]

_ANCHOR: Final = "--save-trust-anchor"
_COLLATERAL: Final = "--save-collateral"


class TrustOutputs(NamedTuple):
    """Output files for the simulator's trust anchor and collateral."""

    anchor: Path | None
    collateral: Path | None

    def outputs(self) -> tuple[tuple[str, Path | None], ...]:
        """Return the output files with their options.

        Raises:
            UsageError: If one is stdout.
        """
        found = ((_ANCHOR, self.anchor), (_COLLATERAL, self.collateral))
        for option, path in found:
            if path is not None and is_stdout(path):
                raise UsageError(
                    f"{option} {path}: stdout is used for the result; name a file",
                    reason="conflict",
                )
        return found

    def write(self, backend: "Backend") -> None:
        """Write the files that the options name.

        Raises:
            UsageError: If the backend is not the simulator, or a file cannot be written.
            UnsupportedError: If the platform has no collateral, such as SEV-SNP.
        """
        if self == (None, None):
            return
        backend = getattr(backend, "of", None) or backend  # the recorded backend of --record
        anchor: bytes | None = getattr(backend, "trust_anchor", None)
        collateral: Callable[[], Any] | None = getattr(backend, "collateral", None)
        if not backend.simulated or anchor is None or collateral is None:
            raise UsageError(
                f"{_ANCHOR} and {_COLLATERAL}: not supported by backend {backend.name}; use the "
                "simulator",
                reason="not_applicable",
            )
        if self.anchor is not None:
            from attestkit._crypto.pem import encode_pem  # lazy: few runs need it

            write_output(_ANCHOR, self.anchor, encode_pem("CERTIFICATE", anchor))
        if self.collateral is not None:
            write_output(_COLLATERAL, self.collateral, collateral().to_json())


simulated_trust_options: Final = group_options(
    "trust",
    (
        click.option(
            _ANCHOR,
            "anchor",
            metavar="FILE",
            type=PATH,
            help="Simulator: write its root certificate, for attestkit verify --trust-anchor.",
        ),
        click.option(
            _COLLATERAL,
            "collateral",
            metavar="FILE",
            type=PATH,
            help="Simulator: write its collateral, for attestkit verify --collateral.",
        ),
    ),
    TrustOutputs,
)
