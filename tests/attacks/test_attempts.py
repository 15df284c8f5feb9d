"""Every attempt is refused, and for a reason that names what is wrong."""

import importlib
import inspect
from pathlib import Path

import pytest

from tests.attacks.attempts import Attempt, succeeds

pytestmark = pytest.mark.slow

_FOLDER = Path(__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(_FOLDER).with_suffix("").parts) for path in _FOLDER.rglob("on_*.py")
)
"""Modules with attempts: `gpu.on_json`, `vtpm.on_logs` ..., each with `attacks = Surfaces(...)`."""

ATTEMPTS = [
    attempt
    for module in MODULES
    for attempt in importlib.import_module(f"tests.attacks.{module}").attacks.attempts
]


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda one: f"{one.surface}: {one.name}")
def test_attempt_is_refused(attempt: Attempt, request: pytest.FixtureRequest) -> None:
    """An attempt raises the error that it should, or holds its own bound."""
    names = inspect.signature(attempt.run).parameters
    fixtures = {name: request.getfixturevalue(name) for name in names}
    assert succeeds(attempt, **fixtures) == ""
