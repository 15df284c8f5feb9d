"""The tests' side of a race: one test per contender, all of a row's timed together.

The first test of a row that runs has everybody take turns; pytest-benchmark then gets each
contender's times played back, so that its tables and its `--benchmark-json` are about the same
rounds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cases import NOT_INSTALLED, OURS, Case, Samples, prepare_contenders
from benchmarks.results import Result
from benchmarks.samples import samples
from benchmarks.timing import Call, Series, race, ratio

__all__ = ["Entry", "Ledger", "Tape", "each", "own_row", "play", "summary"]

SECONDS: Final = 1.2  # that a row's race takes


class Tape:
    """A clock for pytest-benchmark which shows at each look what a race has noted."""

    def __init__(self) -> None:
        self._looks: Iterator[float] = iter(())

    def insert(self, series: Series) -> None:
        """Have the next looks be the beginning and the end of each turn."""
        self._looks = iter([at for s in series.seconds for at in (0.0, s * series.calls)])

    def __call__(self) -> float:
        """Return the next look, in seconds."""
        return next(self._looks)


TAPE: Final = Tape()


class Raced(NamedTuple):
    """What a race found, and who was not in it."""

    series: dict[str, Series]
    left_out: dict[str, str]


class Ledger:
    """All that a run has found so far."""

    def __init__(self) -> None:
        self.results: dict[str, Result] = {}
        self._raced: dict[str, Raced] = {}

    def add(self, result: Result) -> None:
        """Enter a result."""
        self.results[result.row] = result

    def raced(self, row: Case) -> Raced:
        """Return what a row's race found, for which all race if they have not yet."""
        if row.id not in self._raced:
            field = prepare_contenders(row, samples())
            series = race(field.calls, SECONDS) if field.ready else {}
            self._raced[row.id] = Raced(series, field.left_out)
            if series:
                self.add(summary(row, series))
        return self._raced[row.id]


def summary(row: Case, found: dict[str, Series], note: str = "") -> Result:
    """Return the result that a race comes to."""
    values = {name: series.median for name, series in found.items()}
    ratios = {name: ratio(found[OURS], series) for name, series in found.items() if name != OURS}
    return Result(row.id, row.title, "s", values, ratios, note=note)


def own_row(
    row: str,
    what: str,
    calls: Mapping[str, Callable[[], object]],
    values: Callable[[Any], object] | None = None,
) -> Case:
    """Return a row of calls without arguments, which bring their own samples."""

    def maker(call: Callable[[], object]) -> Callable[[Samples], Call]:
        return lambda _: Call(lambda _: call(), None)

    makers = {name: maker(call) for name, call in calls.items()}
    return Case(row, what, makers) if values is None else Case(row, what, makers, values)


class Entry(NamedTuple):
    """A contender of a row: what one test is about."""

    row: Case
    who: str


def each(rows: Iterable[Case]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test one per contender of each row; it is given an `entry`, and hands it to `play`."""
    entries = [
        pytest.param(Entry(row, who), id=f"{row.id}: {who}") for row in rows for who in row.setups
    ]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        for mark in (pytest.mark.parametrize("entry", entries), pytest.mark.benchmark(timer=TAPE)):
            test = mark(test)
        return test

    return decorate


def play(benchmark: BenchmarkFixture, ledger: Ledger, entry: Entry) -> None:
    """Give pytest-benchmark what a contender took; with `--benchmark-disable` see it work once."""
    row, who = entry
    pedantic: Callable[..., object] = benchmark.pedantic
    benchmark.group = row.title
    if benchmark.disabled:
        _refuse(who, prepare_contenders(row, samples()).left_out)
        pedantic(lambda: None)
        return
    found, left_out = ledger.raced(row)
    _refuse(who, left_out)
    series = found[who]
    benchmark.extra_info["times of attestkit's"] = ratio(found[OURS], series)
    TAPE.insert(series)
    pedantic(lambda: None, rounds=len(series.seconds), iterations=series.calls)


def _refuse(who: str, left_out: Mapping[str, str]) -> None:
    """Skip where somebody, or we, cannot be here; fail where a peer does other work than we."""
    for name in (OURS, who):
        if reason := left_out.get(name):
            if reason.startswith(NOT_INSTALLED):
                pytest.skip(f"{name}: {reason}")
            pytest.fail(f"{name} {reason}")
