"""What a scenario is: a fault by name, what it needs of the machine, and what does it."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = ["ALL", "Form", "Scenario", "anywhere", "scenario"]


class Form(NamedTuple):
    """How thoroughly it is done."""

    full: bool

    def seconds(self, short: float, full: float) -> float:
        """Return how long something lasts."""
        return full if self.full else short


Run: TypeAlias = Callable[[Form], dict[str, Any]]


class Scenario(NamedTuple):
    """One fault; `run` raises AssertionError where the server falls short."""

    name: str
    fault: str  # for the table
    run: Run
    missing: Callable[[], str]  # why it cannot be done here, nothing if it can


ALL: Final[dict[str, Scenario]] = {}


def anywhere() -> str:
    """Return nothing: it can be done wherever the tests run."""
    return ""


def scenario(name: str, fault: str, missing: Callable[[], str] = anywhere) -> Callable[[Run], Run]:
    """Enter a function into the list of all."""

    def enter(run: Run) -> Run:
        assert name not in ALL
        ALL[name] = Scenario(name, fault, run, missing)
        return run

    return enter
