"""One table and one picture of a run: what we need and each peer, an estimate, the verdicts.

`python -m benchmarks.compare FILE` prints the table's verdicts; if FILE has every target, table and
picture go into docs/benchmarks/, and what is missing is named otherwise; a run of files that differ
from their commit writes nothing either. Targets are those of the run's CPU. A missed target is
printed last and loudly, and a failure with `--strict` only: a busy machine must not fail a build.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.cases import OURS
from benchmarks.results import Result, differs, load
from benchmarks.targets import (
    LIMITS,
    TARGETS,
    Target,
    Verdict,
    reason_of,
    targets_on,
    verdict,
)
from benchmarks.timing import digits, time_text
from tests.long_runs.records import BENCHMARKS

__all__ = ["judged", "main", "missing", "table", "verdict_lines"]

Targets = Mapping[str, Target]
Results = Mapping[str, Result]
WIDTH: Final = max(map(len, ("missed", "met", "stretch met")))


def judged(targets: Targets, results: Results) -> Iterator[tuple[str, Target, float, Verdict]]:
    """Yield row, target, figure and verdict of each target that was measured."""
    for row, target in targets.items():
        if row in results and (figure := _figure(results[row], target)) is not None:
            yield row, target, figure, verdict(target, figure)


def missing(targets: Targets, results: Results) -> list[str]:
    """Return the rows of targets that were not measured."""
    found = {row for row, *_ in judged(targets, results)}
    return [row for row in targets if row not in found]


def verdict_lines(targets: Targets, results: Results) -> list[str]:
    """Return a line per target that was measured, how many were met, and what cannot be here."""
    found = list(judged(targets, results))
    lines = [
        f"{said:{WIDTH}}  {target.what}: {_against(target, figure)} ({_wanted(target)})"
        for _, target, figure, said in found
    ]
    if found:
        lines.append(_tally([said for *_, said in found]))
    return lines + _not_here(targets)


def table(facts: Mapping[str, Any], results: Results) -> str:
    """Return the Markdown page: facts of the host, the targets' rows, then the others'."""
    targets = targets_on(facts["kernels"])
    verdicts = {row: said for row, _, _, said in judged(targets, results)}
    rows = [*(row for row in targets if row in results), *(r for r in results if r not in targets)]
    head = [
        "work",
        OURS,
        "peers: theirs, and how many times ours",
        "prototype",
        "target",
        "verdict",
        "why a peer is ahead, or the target missed",
    ]
    body = [_row(results[row], targets.get(row), verdicts.get(row)) for row in rows]
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`; [benchmarks/README.md](../../benchmarks/README.md) says what the",
        "numbers mean. Times are medians; ratios are medians over rounds in which all took turns.",
        "",
        *(f"* {name}: {value}" for name, value in _fact_lines(facts)),
        "",
        _tally(list(verdicts.values())),
        *_not_here(targets),
        "",
        _cells(head),
        _cells(["---"] * len(head)),
        *map(_cells, body),
        "",
        "*prototype*: how many times the first peer's speed a prototype had, on another machine.",
        "",
        "![Time of attestkit, of each peer, and of a prototype, estimated](benchmarks.svg)",
    ]
    return "\n".join(lines) + "\n"


def main(words: list[str] | None = None) -> int:
    """Print the verdicts, write the documents; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("file", type=Path, help="what `pytest benchmarks --results FILE` wrote")
    parser.add_argument("--strict", action="store_true", help="fail if a target is missed")
    parser.add_argument("--folder", type=Path, default=BENCHMARKS, help="where the documents go")
    given = parser.parse_args(words)
    facts, results = load(given.file)
    targets = targets_on(facts["kernels"])
    if absent := missing(targets, results):
        print(f"nothing written: not measured were {', '.join(absent)}")
    elif differs(facts):
        print(f"nothing written: what ran is not a commit, but {facts['commit']}")
    else:
        _write(given.folder, facts, results)
    print("\n".join(verdict_lines(targets, results)))
    missed = [target.what for _, target, _, said in judged(targets, results) if said == "missed"]
    if missed:
        print(f"MISSED: {'; '.join(missed)}", file=sys.stderr)
    return 1 if given.strict and (missed or absent) else 0


def _write(folder: Path, facts: Mapping[str, Any], results: Results) -> None:
    # Late: the tests' summary needs no picture.
    from benchmarks.picture import write_picture

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(table(facts, results), encoding="utf-8")
    write_picture(folder / "benchmarks.svg", facts, results)
    print(f"written: {folder}/README.md, {folder}/benchmarks.svg")


def _figure(result: Result, target: Target) -> float | None:
    return result.figure if target.peer is None else result.ratios.get(target.peer)


def _against(target: Target, figure: float) -> str:
    return f"{_exact(figure)} {target.unit if target.peer is None else f'times {target.peer}'}"


def _exact(figure: float) -> str:
    """Return a figure so that 10.97 does not look like a target of 11."""
    return f"{figure:.2f}" if figure < 100 else f"{figure:.0f}"


def _wanted(target: Target) -> str:
    sign, unit = ("≤" if target.at_most else "≥"), ("" if target.peer else f" {target.unit}")
    stretch = "" if target.stretch is None else f", stretch {digits(target.stretch)}{unit}"
    note = f"; {target.note}" if target.note else ""
    return f"target {sign} {digits(target.target)}{unit}{stretch}{note}"


def _tally(verdicts: list[Verdict]) -> str:
    met, stretched = len(verdicts) - verdicts.count("missed"), verdicts.count("stretch met")
    return f"{met} of {len(verdicts)} targets met, {stretched} with their stretch values."


def _not_here(targets: Targets) -> list[str]:
    """Return a line that names the targets of rows that the CPU cannot have, if there are any."""
    absent = [target.what for row, target in TARGETS.items() if row not in targets]
    return [f"Not on this CPU: {'; '.join(absent)}."] if absent else []


def _row(result: Result, target: Target | None, said: Verdict | None) -> list[str]:
    peers = "; ".join(
        f"{name} {_value(result, result.values[name])}"
        + (f", **{_exact(result.ratios[name])}**" if name in result.ratios else "")
        for name in result.values
        if name != OURS
    )
    ours = _value(result, result.values[OURS])
    if result.figure is not None and target is not None:
        ours = f"**{_exact(result.figure)} {target.unit}**" + (f" ({ours})" if peers else "")
    limit = f"{digits(LIMITS[result.row])}" if result.row in LIMITS else ""
    what = result.what + (f" ({result.note})" if result.note else "")
    wanted, why = _wanted(target) if target else "", _why(result, said)
    return [what, ours, peers, limit, wanted, said or "", why]


def _why(result: Result, said: Verdict | None) -> str:
    """Return why a peer is ahead or the target missed; empty if neither is so.

    Those that do less or other work, so that no comparison is meant, are named "attestkit, ...".
    """
    peers = [ratio for name, ratio in result.ratios.items() if not name.startswith(OURS)]
    behind = said == "missed" or any(float(_exact(ratio)) < 1 for ratio in peers)
    return (reason_of(result.row) or "not known") if behind else ""


def _value(result: Result, value: float) -> str:
    return time_text(value) if result.unit == "s" else f"{digits(value)} {result.unit}"


def _fact_lines(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        listed = isinstance(value, dict)
        yield name, ", ".join(f"{k} {v}" for k, v in value.items()) if listed else str(value)


def _cells(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


if __name__ == "__main__":
    raise SystemExit(main())
