"""Repeat the test suite and record how many runs failed: `make flake`.

The record, docs/records/flake.json, has commit, machine, command, and for each run its seconds
and pytest's summary line. With --seconds it stops after the run that exceeds this time and writes
no record, as in continuous integration.
"""

import argparse
import sys
import time
from typing import Any

from tests.long_runs.records import ROOT, write_record
from tests.processes import run_program

DEFAULT = ("-n", "auto", "-m", "not slow")  # the options of `make test`


def main() -> int:
    """Return 0 if every run passed."""
    parser = argparse.ArgumentParser(description="Run the tests again and again.")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seconds", type=float, help="stop after so many, and record nothing")
    parser.add_argument("pytest", nargs="*", help="what pytest is told; after --")
    options = parser.parse_args()
    command = ["-m", "pytest", "-q", "-p", "no:benchmark", *(options.pytest or DEFAULT)]
    runs: list[dict[str, Any]] = []
    start = time.monotonic()
    while len(runs) < options.runs:
        runs.append(_run(command))
        sys.stdout.write(f"run {len(runs)}: {runs[-1]['result']}\n")
        sys.stdout.flush()
        if options.seconds is not None and time.monotonic() - start > options.seconds:
            break
    failed = sum(run["exit"] != 0 for run in runs)
    if options.seconds is None:
        _record(command, runs, failed)
    return 1 if failed else 0


def _run(command: list[str]) -> dict[str, Any]:
    start = time.monotonic()
    done = run_program(sys.executable, *command, cwd=ROOT)
    if done.returncode:
        sys.stdout.write(done.stdout)
    lines = done.stdout.strip().splitlines()
    return {
        "exit": done.returncode,
        "seconds": round(time.monotonic() - start, 1),
        "result": lines[-1] if lines else done.stderr.strip()[-200:],
    }


def _record(command: list[str], runs: list[dict[str, Any]], failed: int) -> None:
    figures = {"runs": len(runs), "failed": failed, "each": runs}
    write_record("flake", {"command": " ".join(["python", *command]), **figures})


if __name__ == "__main__":
    sys.exit(main())
