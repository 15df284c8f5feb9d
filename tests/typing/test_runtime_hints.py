"""Hints that a program can read while it runs, on every Python that we know."""

from collections.abc import Callable
from typing import Any, get_type_hints

from attestkit import AppKeys, Attester
from attestkit.aio import AsyncAttester
from attestkit.backends.recording import Recording
from tests.runner.cases import every_case


@every_case(
    "function",
    [Attester.__enter__, AsyncAttester.__aenter__, AsyncAttester.__await__, AppKeys.__enter__],
)
def test_hints_of_a_with_block(function: Callable[..., Any]) -> None:
    """Containers of dependencies, for one, ask what comes out of it."""
    assert "return" in get_type_hints(function)


def test_hints_of_a_recording() -> None:
    """Its class is what the options are checked against."""
    assert {"path", "return"} <= get_type_hints(Recording.__new__).keys()
