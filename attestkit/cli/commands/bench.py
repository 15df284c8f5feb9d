"""`attestkit bench`: this machine's numbers beside those of the peers that are installed."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from attestkit.cli.options.click_types import json_option
from attestkit.cli.output import console

if TYPE_CHECKING:
    from attestkit.cli.bench.cases import Row, Samples
    from attestkit.cli.bench.timing import Series

__all__ = ["bench"]


_EPILOG: Final = "Example: attestkit bench --seconds 2\n\nExit codes: 0 good, 1 usage."


class Measured(NamedTuple):
    """A row, what its race found, and who was not in it: if we were not, there was none."""

    row: "Row"
    series: "dict[str, Series]"
    left_out: dict[str, str]


class Seconds(click.FloatRange):
    """A time within bounds; NaN, which no comparison refuses, is none."""

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or refuse it as click does."""
        found: float = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is not a time.", param, ctx)
        return found


@click.command(epilog=_EPILOG)
@click.option(
    "--seconds",
    metavar="N",
    type=Seconds(0.1, 600),
    default=10,
    show_default=True,
    help="How long to measure, about.",
)
@json_option
def bench(*, seconds: float, as_json: bool) -> int:
    """Measure this machine beside the peers.

    The work is reading quotes and event logs, replay, and verification. Beside attestkit stands
    whichever peer is installed; hashlib and json always are. All of a row
    take turns, so that their ratio holds although the machine's speed changes. Samples are the
    simulator's.
    """
    # Late: no other command needs any of them.
    from attestkit.cli.bench.cases import OURS, simulated
    from attestkit.cli.bench.environment import host_facts, versions

    samples = simulated()
    found = list(_measure(samples, seconds))
    peers = {name.partition(",")[0]: None for one in found for name in one.series}
    packages = versions(name for name in peers if name != OURS)
    host = host_facts() | {"samples": samples.origin, "peers": packages}
    if as_json:
        console.as_json({"host": host, "rows": [_as_json(one) for one in found]})
        return 0
    host["peers"] = ", ".join(f"{name} {version}" for name, version in packages.items()) or None
    console.fields("This machine", host)
    console.lines([""])
    console.rows(("work", "attestkit", "peer", "its time", "times ours"), _table(found))
    left_out = {f"{name}: {reason}" for one in found for name, reason in one.left_out.items()}
    if left_out:
        console.lines(["", "Not measured:", *sorted(left_out)])
    console.lines(["", "Medians of turns taken by all of a row, in processor time."])
    return 0


def _measure(samples: "Samples", seconds: float) -> Iterator[Measured]:
    """Race each row for its share of the time."""
    from attestkit.cli.bench.cases import contenders
    from attestkit.cli.bench.event_logs import ROWS as LOGS
    from attestkit.cli.bench.quotes import ROWS as QUOTES
    from attestkit.cli.bench.timing import race

    rows = (*QUOTES, *LOGS)
    with console.progress("measuring", len(rows)) as advance:
        for row in rows:
            field = contenders(row, samples)
            series = race(field.calls, seconds / len(rows)) if field.ready else {}
            yield Measured(row, series, field.left_out)
            advance()


def _table(found: list[Measured]) -> Iterator[tuple[str, ...]]:
    """Yield a line per peer; what all of a row have in common is in its first."""
    from attestkit.cli.bench.cases import OURS
    from attestkit.cli.bench.timing import digits, ratio, time_text

    for row, series, _ in found:
        if not series:
            yield row.what, "not measured", "", "", ""
            continue
        ours = series[OURS]
        first = row.what, time_text(ours.median)
        for name, theirs in series.items():
            if name != OURS:
                yield *first, name, time_text(theirs.median), digits(ratio(ours, theirs))
                first = "", ""
        if len(series) == 1:
            yield *first, "none", "", ""


def _as_json(one: Measured) -> dict[str, Any]:
    """Return a row for programs: seconds of each, and how many times ours theirs are."""
    from attestkit.cli.bench.cases import OURS
    from attestkit.cli.bench.timing import ratio

    row, series, left_out = one
    return {
        "row": row.id,
        "what": row.what,
        "seconds": {name: each.median for name, each in series.items()},
        "ratios": {n: ratio(series[OURS], each) for n, each in series.items() if n != OURS},
        "left_out": left_out,
        "rounds": len(series[OURS].seconds) if series else 0,
    }
