"""The table of attempts: who attacks what, how, and which refusal is the right one."""

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, TypeVar

from attestkit.errors import AttestKitError

Kind = Literal["forge", "recombine", "relay", "replay", "exhaust", "confuse"]
"""What an attempt does.

It makes evidence, mixes genuine pieces, passes on those of another machine, repeats old ones, uses
up memory, time or connections, or has one meaning taken for another.
"""

Surface = Literal["vtpm", "gpu", "kms", "connect", "middleware", "v1", "measure", "collateral"]


class Attempt(NamedTuple):
    """One attempt. It fails, as it should, if `run` raises an error of this type and reason."""

    surface: Surface
    kind: Kind
    name: str
    run: Callable[..., object]  # its parameters are pytest fixtures
    error: type[AttestKitError] | None  # None: `run` itself asserts that the bound held
    reasons: tuple[str, ...]


class Surfaces:
    """Collects the attempts of one module.

    >>> attacks = Surfaces("vtpm")
    >>> @attacks.attempt("relay", SignatureError, "hardware_to_ak")
    ... def report_of_another_machine() -> None: ...
    """

    def __init__(self, surface: Surface) -> None:
        self._surface: Final = surface
        self.attempts: Final[list[Attempt]] = []

    def attempt(
        self, kind: Kind, error: type[AttestKitError] | None = None, *reasons: str, name: str = ""
    ) -> Callable[[Callable[..., object]], Callable[..., object]]:
        """Return a decorator that adds a function to the attempts."""

        def add(run: Callable[..., object]) -> Callable[..., object]:
            title = (name or run.__name__).replace("_", " ")
            assert (error is None) == (not reasons), f"{title}: an error needs its reasons"
            assert title not in [one.name for one in self.attempts], title
            self.attempts.append(Attempt(self._surface, kind, title, run, error, reasons))
            return run

        return add

    def add(
        self,
        kind: Kind,
        name: str,
        run: Callable[..., object],
        error: type[AttestKitError] | None = None,
        *reasons: str,
    ) -> None:
        """Add an attempt of a loop, such as one for each field."""
        self.attempt(kind, error, *reasons, name=name)(run)


def succeeds(attempt: Attempt, **fixtures: Any) -> str:
    """Return how an attempt succeeded; empty if it was refused for a right reason."""
    if attempt.error is None:
        attempt.run(**fixtures)
        return ""
    try:
        result = attempt.run(**fixtures)
    except attempt.error as error:
        reason = getattr(error, "reason", "")
        if reason in attempt.reasons:
            return ""
        return f"refused as {reason}, expected {', '.join(attempt.reasons)}: {error}"
    return f"accepted: {result!r:.200}"


_Result = TypeVar("_Result")


def bound(run: Callable[..., _Result], *args: Any, **options: Any) -> Callable[[], _Result]:
    """Return a function without parameters, for an attempt of a loop."""
    return lambda: run(*args, **options)
