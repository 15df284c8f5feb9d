"""Reduce expensive tests in the default run: fewer examples of a property, fewer parameters.

A property test with thousands of examples rarely finds more than with a few hundred, and a
sixteenth rejected option rarely more than the first; each costs a second or more of CPU per
`make test`. `make test ARGS="-m slow"` runs them all, continuous integration at most
`ATTESTKIT_MOST_EXAMPLES` of each.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy

from tests.untyped import untyped

MOST: Final = int(os.environ.get("ATTESTKIT_MOST_EXAMPLES", sys.maxsize))
IS_WHOLE: Final = sys.maxsize == MOST
"""Whether nothing is limited."""

Property = Callable[..., None]
T = TypeVar("T")


def thorough(*drawn: SearchStrategy[Any], few: int, many: int) -> Callable[[Property], Property]:
    """Return a decorator like `given` and `settings` that makes two tests, the second one slow.

    The second one is left out if `MOST` limits it to as many examples as the first one has.
    """
    sizes = [few] if few >= MOST else [few, pytest.param(many, marks=pytest.mark.slow)]

    def decorate(holds: Property) -> Property:
        @pytest.mark.parametrize("examples", sizes)
        def both(examples: int) -> None:
            check = given(*drawn)(holds)
            settings(max_examples=examples, database=None, deadline=None)(check)()

        both.__name__, both.__doc__ = holds.__name__, holds.__doc__
        untyped(both).place_as = holds  # the place that pytest reports
        return both

    return decorate


def limited(items: Sequence[T]) -> Sequence[T]:
    """Return all items, or at most `MOST` at equal distances.

    The distance is odd, so that offsets, of which a test flips bit `offset % 8`, have all bits.
    """
    return items[:: -(-len(items) // MOST) | 1]


def unless_limited(many: int, few: int) -> int:
    """Return `many`, or `few` where continuous integration limits the examples."""
    return few if "ATTESTKIT_MOST_EXAMPLES" in os.environ else many


def slow(*rows: tuple[Any, ...]) -> list[Any]:
    """Mark rows of parameters as slow; put them behind representative rows that are not."""
    return [pytest.param(*row, marks=pytest.mark.slow) for row in rows]
