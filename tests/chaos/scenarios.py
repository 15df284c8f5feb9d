"""The scenarios: a named fault, its requirements of the machine, and its function."""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias


class Form(NamedTuple):
    """The thoroughness of a run."""

    full: bool

    def seconds(self, short: float, full: float) -> float:
        """Return the duration of a fault."""
        return full if self.full else short


Run: TypeAlias = Callable[[Form], dict[str, Any]]


class Scenario(NamedTuple):
    """A fault; `run` raises AssertionError if the server does not meet its requirements."""

    name: str
    fault: str  # for the table
    run: Run
    missing: Callable[[], str]  # why it cannot run here; empty if it can


ALL: Final[dict[str, Scenario]] = {}


def anywhere() -> str:
    """Return an empty string: the scenario runs on any machine."""
    return ""


def scenario(name: str, fault: str, missing: Callable[[], str] = anywhere) -> Callable[[Run], Run]:
    """Register a function as a scenario."""

    def enter(run: Run) -> Run:
        assert name not in ALL
        ALL[name] = Scenario(name, fault, run, missing)
        return run

    return enter
