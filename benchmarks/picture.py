"""The picture of a run: a line per piece of work, on it everybody's time, logarithmic."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cases import OURS
from benchmarks.results import Result
from benchmarks.targets import LIMITS, TARGETS

__all__ = ["write_picture"]

INK: Final = "#57606a"  # of text and lines; text is lighter where the reader's page is dark
LINES: Final = "#8c959f"
LIMIT: Final = "prototype (est.)"  # a ratio of another machine's, so an estimate on this one
OURS_COLOUR: Final = "#cf222e"
DARK: Final = (
    "<style>@media (prefers-color-scheme: dark){text,tspan{fill:#d0d7de!important}}</style>"
)
# Colours that are told apart on white and on black; shapes do it where colours do not.
COLOURS: Final = ("#0969da", "#1a7f37", "#bf8700", "#8250df", "#bc4c00", "#3192aa")
SHAPES: Final = ("o", "s", "^", "v", "P", "X", "p", "h")


def write_picture(path: Path, facts: Mapping[str, Any], results: Mapping[str, Result]) -> None:
    """Write an SVG, the same on every call with the same results."""
    rows = [row for row in (TARGETS | LIMITS) if row in results and _is_drawn(results[row])]
    figure = Figure(figsize=(10, 1.6 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names = sorted({name for row in rows for name in results[row].values} - {OURS})
    for height, row in enumerate(reversed(rows)):
        _draw(axes, height, results[row], names)
    axes.set_yticks(range(len(rows)), [_label(results[row]) for row in reversed(rows)])
    axes.set_ylim(-1, len(rows))
    axes.set_xscale("log")
    axes.tick_params(labeltop=True)  # the picture is higher than a screen
    axes.set_xlabel("microseconds; further left is quicker")
    figure.suptitle(f"{facts['cpu']}, {facts['kernels']}, Python {facts['python']}", color=INK)
    save_svg(path, figure, axes)


def _label(result: Result) -> str:
    """Return what it is, without what its peers do instead, on lines that leave room."""
    return fill(result.what.partition(";")[0], 34)


def _is_drawn(result: Result) -> bool:
    return result.unit == "s" and not result.row.startswith(("avx2-", "key-"))


def _draw(axes: Axes, height: int, result: Result, names: list[str]) -> None:
    times = {name: seconds * 1e6 for name, seconds in result.values.items()}
    axes.plot([min(times.values()), max(times.values())], [height] * 2, color=LINES, linewidth=0.8)
    for name, time in times.items():
        if name == OURS:
            continue
        at = names.index(name)
        colour, shape = COLOURS[at % len(COLOURS)], SHAPES[at % len(SHAPES)]
        axes.plot(time, height, shape, color=colour, label=name, markersize=6)
    if result.row in LIMITS:
        peer = TARGETS[result.row].peer if result.row in TARGETS else next(iter(result.ratios))
        limit = times[peer or OURS] / LIMITS[result.row]
        axes.plot(limit, height, "|", color=INK, markersize=14, markeredgewidth=2, label=LIMIT)
    axes.plot(times[OURS], height, "D", color=OURS_COLOUR, markersize=7, label=OURS)


def save_svg(path: Path, figure: Figure, axes: Axes) -> None:
    """Write a figure whose text can be read on a light page and on a dark one."""
    mpl.rcParams["svg.hashsalt"] = "attestkit"
    mpl.rcParams["svg.fonttype"] = "none"
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, which="both")
    axes.grid(alpha=0.3, color=LINES, which="major")
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)
    for spine in axes.spines.values():
        spine.set_color(LINES)
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    first = [name for name in (OURS, LIMIT) if name in handles]
    names = [*first, *(name for name in handles if name not in first)]
    figure.legend(
        [handles[name] for name in names],
        names,
        frameon=False,
        labelcolor=INK,
        fontsize=8,
        loc="outside right upper",
    )
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
    svg = path.read_text(encoding="utf-8")
    head, defs, rest = svg.partition("<defs>")
    path.write_text(head + DARK + defs + rest, encoding="utf-8")
