"""`attestkit bench`: measurements of attestkit and comparable installed packages."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from attestkit.cli.options.click_types import json_option
from attestkit.cli.output import console

if TYPE_CHECKING:
    from attestkit.cli.bench.cases import Case, Samples
    from attestkit.cli.bench.timing import Series

__all__ = ["bench"]


_EPILOG: Final = "Example: attestkit bench --seconds 2\n\nExit codes: 0 good, 1 usage."


class CaseResult(NamedTuple):
    """A benchmark case with its measurements; empty if attestkit itself cannot run it."""

    case: "Case"
    series: "dict[str, Series]"
    left_out: dict[str, str]


class Seconds(click.FloatRange):
    """A duration within bounds; NaN is refused."""

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail if it is NaN."""
        found: float = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value} is not a duration.", param, ctx)
        return found


@click.command(epilog=_EPILOG)
@click.option(
    "--seconds",
    metavar="N",
    type=Seconds(0.1, 600),
    default=10,
    show_default=True,
    help="Approximate duration.",
)
@json_option
def bench(*, seconds: float, as_json: bool) -> int:
    """Measure attestkit and comparable packages on this machine.

    The cases parse quotes and event logs, replay logs and verify evidence of the simulator. Peers
    are the comparable packages that are installed; hashlib and json always are. The contenders of
    a case take turns, so that ratios hold although the machine's speed changes.
    """
    # Lazy: no other command needs these.
    from attestkit.cli.bench.cases import OURS, simulate_samples
    from attestkit.cli.bench.environment import host_facts, versions

    samples = simulate_samples()
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
    console.rows(("case", "attestkit", "peer", "peer's time", "ratio"), _table(found))
    left_out = {f"{name}: {reason}" for one in found for name, reason in one.left_out.items()}
    if left_out:
        console.lines(["", "Not measured:", *sorted(left_out)])
    console.lines(
        [
            "",
            "Times are medians of processor time; ratio: peer's time / attestkit's.",
        ]
    )
    return 0


def _measure(samples: "Samples", seconds: float) -> Iterator[CaseResult]:
    """Measure each case for its share of the time."""
    from attestkit.cli.bench.cases import prepare_contenders
    from attestkit.cli.bench.event_logs import CASES as LOG_CASES
    from attestkit.cli.bench.quotes import CASES as QUOTE_CASES
    from attestkit.cli.bench.timing import race

    cases = (*QUOTE_CASES, *LOG_CASES)
    with console.progress("measuring", len(cases)) as advance:
        for case in cases:
            contenders = prepare_contenders(case, samples)
            series = race(contenders.calls, seconds / len(cases)) if contenders.ready else {}
            yield CaseResult(case, series, contenders.left_out)
            advance()


def _table(found: list[CaseResult]) -> Iterator[tuple[str, ...]]:
    """Yield a line per peer; only the first line of a case has its name and attestkit's time."""
    from attestkit.cli.bench.cases import OURS
    from attestkit.cli.bench.timing import digits, ratio, time_text

    for case, series, _ in found:
        if not series:
            yield case.title, "not measured", "", "", ""
            continue
        ours = series[OURS]
        first = case.title, time_text(ours.median)
        for name, peer in series.items():
            if name != OURS:
                yield *first, name, time_text(peer.median), digits(ratio(ours, peer))
                first = "", ""
        if len(series) == 1:
            yield *first, "none", "", ""


def _as_json(one: CaseResult) -> dict[str, Any]:
    """Return a case for JSON: seconds of each contender, and ratios to attestkit's."""
    from attestkit.cli.bench.cases import OURS
    from attestkit.cli.bench.timing import ratio

    case, series, left_out = one
    return {
        "row": case.id,
        "what": case.title,
        "seconds": {name: each.median for name, each in series.items()},
        "ratios": {n: ratio(series[OURS], each) for n, each in series.items() if n != OURS},
        "left_out": left_out,
        "rounds": len(series[OURS].seconds) if series else 0,
    }
