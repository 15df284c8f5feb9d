"""Run the cells of the compatibility matrix, two at a time: `make matrix`.

The whole matrix, some 20 minutes on two idle cores, writes docs/records/matrix.json and
docs/compatibility.md. It may run in parts: a commit's results are stored in .matrix/ and
not repeated; with --stop-after SECONDS the cells that have not started by then are recorded as not
run. --quick is the form for continuous integration, and --only TEXT runs the cells whose name has a
text; both write no record. --page generates the page from the record.

The exit code is 1 if a cell fails. Packages that cannot be installed here are only reported.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.matrix import environments, suites
from tests.matrix.cells import Cell, cells, quick
from tests.matrix.page import PAGE, RECORD, page
from tests.records import DIRTY, ROOT, commit, write_record

_FIRST = {"dstack-sdk": (0, 5, 0), "@phala/dstack-sdk": (0, 5, 5)}  # supported
_AT_ONCE = 2
_KEPT = ROOT / ".matrix"
_COMMIT = commit()  # at the start: the tests must run the same sources as the wheel


def main() -> int:
    """Return 0 if no cell failed."""
    parser = argparse.ArgumentParser(description="Run the compatibility matrix.")
    parser.add_argument("--quick", action="store_true", help="the ends of the ranges; no record")
    parser.add_argument("--only", default="", help="the cells with this in their name; no record")
    parser.add_argument("--stop-after", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--page", action="store_true", help="write the page from the record")
    options = parser.parse_args()
    if options.page:
        PAGE.write_text(page(json.loads(RECORD.read_text())))
        return 0
    releases = {name: _releases(name) for name in _FIRST}
    every = cells(releases)
    chosen = quick(every) if options.quick else every
    chosen = [cell for cell in chosen if options.only in str(cell)]
    with tempfile.TemporaryDirectory(prefix="ak") as folder:
        done = _run_all(chosen, Path(folder), time.monotonic() + options.stop_after)
    failed = sum(bool(result.get("failed")) for result in done)
    missing = sum("not_run" in result for result in done)
    _say(f"{len(done)} cells, {failed} failed, {missing} not run")
    if not (options.quick or options.only):
        write_record("matrix", _record(releases, done))
        PAGE.write_text(page(json.loads(RECORD.read_text())))
    return 1 if failed or not done else 0


def _record(releases: dict[str, list[str]], done: list[dict[str, Any]]) -> dict[str, Any]:
    libc = os.confstr("CS_GNU_LIBC_VERSION") or "not glibc"
    return {
        "command": "python -m tests.matrix",
        "libc": libc,
        "releases": releases,
        "ranges": {each.name: each.requirement for each in suites.ranges()},
        "cells": done,
    }


def _run_all(chosen: list[Cell], folder: Path, end: float) -> list[dict[str, Any]]:
    kept = folder if DIRTY in _COMMIT else _KEPT / _COMMIT
    wheel = environments.build_wheel(kept / "wheel")

    def work(numbered: tuple[int, Cell]) -> dict[str, Any]:
        number, cell = numbered
        place = folder / str(number)
        place.mkdir()
        result = _run(cell, place, wheel, end)
        _say(f"{cell}: {_told(result)}")
        return result

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(work, enumerate(chosen)))


def _run(cell: Cell, place: Path, wheel: Path, end: float) -> dict[str, Any]:
    begin = time.monotonic()
    named = {"group": cell.group, "name": cell.name, "python": cell.python}
    kept = _KEPT / _COMMIT / f"{re.sub('[^a-z0-9.]+', '-', str(cell))}.json"
    if kept.exists() and DIRTY not in _COMMIT:
        return dict(json.loads(kept.read_text()))
    if begin > end:
        return {**named, "not_run": "there was no time", "seconds": 0.0}
    try:
        found = cell.run(place, wheel)
    except environments.CannotInstallError as error:
        found = {"not_run": str(error)}
    finally:
        environments.remove(place)
    result = {**named, **found, "seconds": round(time.monotonic() - begin, 1)}
    if DIRTY not in _COMMIT and not result.get("failed"):
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(result))
    return result


def _told(result: dict[str, Any]) -> str:
    if "not_run" in result:
        return f"NOT RUN, {result['not_run']}"
    kinds = ("passed", "failed", "skipped")
    counts = ", ".join(f"{result.get(kind, 0)} {kind}" for kind in kinds)
    if without := result.get("without"):
        counts += f", without {' '.join(without)}"
    return "\n".join([f"{counts}, {result['seconds']} s", *result["failures"]])


def _releases(name: str) -> list[str]:
    """Return the supported releases of a client that its registry lists."""
    if name.startswith("@"):
        done = environments.run(["npm", "view", name, "versions", "--json"])
        every = json.loads(done.stdout)
    else:
        pip = [sys.executable, "-m", "pip", "index", "versions", "--pre", name]
        done = environments.run(pip)
        [listed] = re.findall(r"Available versions: (.+)", done.stdout)
        every = listed.split(", ")
    return sorted((each for each in every if _order(each) >= _FIRST[name]), key=_order)


def _order(version: str) -> tuple[int, ...]:
    """Return the sort key of a version: its numbers; a final release follows its candidates."""
    numbers = re.findall(r"\d+", version)
    final = (*map(int, numbers[:3]),)
    rest = re.fullmatch(r"[\d.]+(?:(a|b|rc)(\d+))?", version)
    assert rest is not None, version
    if rest[1] is None:
        return (*final, 9, 0)
    return (*final, ("a", "b", "rc").index(rest[1]), int(rest[2]))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
