"""The registry of critical sections: their threads, modules and guards."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from tests.concurrency.explore import Scenario

SEED: Final = bytes(range(32))
_FAST: Final = Path("/dev/shm")


class Subject(NamedTuple):
    """A critical section.

    Attributes:
        scenario: Its threads.
        modules: The modules of the section, whose lines are steps.
        guards: Texts of the modules and their replacements, without which a schedule fails.
        fine: Whether accesses within a line are steps, too.
    """

    scenario: Scenario
    modules: Sequence[str]
    guards: Sequence[tuple[str, str]]
    fine: bool = False


SUBJECTS: Final[dict[str, Subject]] = {}


def subject(
    *modules: str, guards: Sequence[tuple[str, str]], fine: bool = False
) -> Callable[[Scenario], Scenario]:
    """Register the decorated scenario."""

    def register(scenario: Scenario) -> Scenario:
        name = getattr(scenario, "__name__", "").replace("_", " ")
        SUBJECTS[name] = Subject(scenario, modules, guards, fine)
        return scenario

    return register


def private_folder(stack: ExitStack) -> Path:
    """Return a folder that is removed with `stack`."""
    fast = _FAST if _FAST.is_dir() else None
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ak", dir=fast)))
