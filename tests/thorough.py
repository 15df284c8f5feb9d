"""What the default run has few of, and slow tests all: examples of a property, or like parameters.

What costs a second or more of processor at every `make test` shows little with its last thousand
examples that it did not with the first few hundred, or with a sixteenth program that is started to
refuse an option. Those who have the time try them all.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

from tests.untyped import untyped

__all__ = ["slow", "thorough"]

Property = Callable[..., None]


def thorough(*drawn: SearchStrategy[Any], few: int, many: int) -> Callable[[Property], Property]:
    """Return a decorator that stands for `given` and `settings`: two tests, the second one slow."""

    def decorate(holds: Property) -> Property:
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def both(examples: int) -> None:
            check = given(*drawn)(holds)
            settings(max_examples=examples, database=None, deadline=None)(check)()

        both.__name__, both.__doc__ = holds.__name__, holds.__doc__
        untyped(both).place_as = holds  # where pytest says it is
        return both

    return decorate


def slow(*rows: tuple[Any, ...]) -> list[Any]:
    """Return rows of parameters as slow ones, to be put behind those that stand for them."""
    return [pytest.param(*row, marks=pytest.mark.slow) for row in rows]
