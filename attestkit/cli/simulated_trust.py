"""The options that write what it takes to believe a simulated TEE, for whoever tests a verifier."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from attestkit.cli.parameters import PATH
from attestkit.cli.write_output import check_output, is_stdout, write_output
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit.backends.base import Backend

__all__ = ["SimulatedTrust", "simulated_trust_options"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_ANCHOR: Final = "--save-trust-anchor"
_COLLATERAL: Final = "--save-collateral"


class SimulatedTrust(NamedTuple):
    """Where to write it."""

    anchor: Path | None
    collateral: Path | None

    def check(self, inputs: Iterable[Path]) -> None:
        """Refuse, before anything is asked, places that cannot be; UsageError says why."""
        inputs = tuple(inputs)
        for option, path in ((_ANCHOR, self.anchor), (_COLLATERAL, self.collateral)):
            if path is not None and is_stdout(path):
                raise UsageError(f"{option} {path}: stdout has what was asked for; name a file")
            check_output(option, path, inputs)

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


def simulated_trust_options(command: _Command) -> _Command:
    """Give a command the options, and hand it what they say as `trust`."""

    @functools.wraps(command)
    def asking(*, anchor: Path | None, collateral: Path | None, **options: Any) -> Any:  # noqa: ANN401 - whatever the command takes and returns
        return command(trust=SimulatedTrust(anchor, collateral), **options)

    wrapped: Any = asking
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    decorated: _Command = wrapped
    return decorated


_OPTIONS: Final = (
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
)
