"""Tests of the linearizability checker: possible histories pass, and impossible ones fail."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.concurrency.linearizable import NEVER, Call, Log, boot, emit, explain, saw, unexplained

POSSIBLE = {
    "nothing": [],
    "one after the other": [emit(0, 1, "a"), saw(2, 3, ("a",)), emit(4, 5, "b")],
    "a quote beside an emit has it": [emit(0, 5, "a"), saw(1, 2, ("a",))],
    "or has it not": [emit(0, 5, "a"), saw(1, 2, ())],
    "two at once, in either order": [emit(0, 5, "a"), emit(1, 4, "b"), saw(6, 7, ("b", "a"))],
    "a refused one": [emit(0, 1, "a", done=False), saw(2, 3, ())],
    "an unknown one that was done": [emit(0, 1, "a", done=None), saw(2, 3, ("a",))],
    "an unknown one that was not": [emit(0, 1, "a", done=None), saw(2, 3, ())],
    "one without a response": [
        emit(0, NEVER, "a", done=None),
        saw(1, 2, ()),
        saw(3, 4, ("a",)),
    ],
    "a boot": [emit(0, 1, "a"), boot(2, 3, ("x",)), saw(4, 5, ("x",))],
    "an emit around a boot": [emit(0, 5, "a"), boot(1, 2), saw(6, 7, ("a",))],
}
IMPOSSIBLE = {
    "an acknowledged event is missing": [emit(0, 1, "a"), saw(2, 3, ())],
    "an event from the future": [saw(0, 1, ("a",)), emit(2, 3, "a")],
    "a refused event is there": [emit(0, 1, "a", done=False), saw(2, 3, ("a",))],
    "an event twice": [emit(0, 1, "a"), saw(2, 3, ("a", "a"))],
    "an event that was not emitted": [saw(0, 1, ("a",))],
    "two orders": [emit(0, 9, "a"), emit(0, 9, "b"), saw(1, 8, ("a", "b")), saw(1, 8, ("b", "a"))],
    "against the order of time": [emit(0, 1, "a"), emit(2, 3, "b"), saw(4, 5, ("b", "a"))],
    "seen and gone": [emit(0, NEVER, "a", done=None), saw(1, 2, ("a",)), saw(3, 4, ())],
    "an old one after a newer": [emit(0, 9, "a"), saw(1, 2, ("a",)), saw(3, 4, ())],
    "an end that was no end": [emit(0, 1, "a", done=None), saw(2, 3, ()), saw(4, 5, ("a",))],
    "what a boot has cleared": [emit(0, 1, "a"), boot(2, 3), saw(4, 5, ("a",))],
    "what a boot has not cleared": [
        emit(0, 1, "a"),
        saw(2, 3, ("a",)),
        boot(4, 5),
        saw(6, 7, ("a",)),
    ],
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_explain_possible_history(name: str) -> None:
    """A possible history has an order, which consists of its calls."""
    order = explain(POSSIBLE[name])
    assert order is not None
    assert set(order) <= set(POSSIBLE[name])
    assert {call for call in POSSIBLE[name] if call.done} <= set(order)
    assert unexplained(POSSIBLE[name]) == []


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_explain_impossible_history(name: str) -> None:
    """An impossible history has no order, in whatever sequence its calls are given."""
    for calls in permutations(IMPOSSIBLE[name]):
        assert explain(calls) is None
    assert unexplained(IMPOSSIBLE[name])


def test_explain_20_concurrent_emits_is_fast() -> None:
    """Twenty concurrent emits, ordered by a quote, are explained quickly."""
    names = tuple(f"{n * 7 % 20}" for n in range(20))
    calls = [emit(n, 100 + n, str(n)) for n in range(20)]
    assert explain([*calls, saw(200, 201, names)])
    assert explain([*calls, saw(200, 201, (*names[1:], "no"))]) is None


def test_unexplained_omits_later_calls() -> None:
    """Calls after the first unexplained response are omitted."""
    calls = [emit(0, 1, "a"), saw(2, 3, ()), emit(4, 5, "b"), saw(6, 7, ("a", "b"))]
    assert unexplained(calls) == calls[:2]


def is_explained_by_any_order(calls: list[Call]) -> bool:
    """Return whether some order explains the calls, by trying all orders."""

    def fits(order: tuple[Call, ...]) -> bool:
        logs: set[Log] = {()}
        for index, call in enumerate(order):
            if any(later.end < call.begin for later in order[index + 1 :]):
                return False
            taken = set() if call.done is False else {a for log in logs for a in call.outcomes(log)}
            logs = taken | (set() if call.done else logs)
        return bool(logs)

    return any(map(fits, permutations(calls)))


MOMENTS = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted)
LOGS = st.lists(st.sampled_from("abc"), unique=True, max_size=3).map(tuple)
EMITS = st.builds(
    lambda when, name, done: emit(when[0], when[1], name, done=done),
    MOMENTS,
    st.sampled_from("abc"),
    st.sampled_from([True, False, None]),
)
LOOKS = st.builds(lambda when, names: saw(when[0], when[1], names), MOMENTS, LOGS)


@given(st.lists(EMITS | LOOKS, max_size=5))
def test_explain_agrees_with_exhaustive_search(calls: list[Call]) -> None:
    """The search gives the same result as trying every order."""
    assert (explain(calls) is not None) == is_explained_by_any_order(calls)
