"""Compare attestkit's DCAP engine with dcap-qvl over random evidence: `make differential`.

A million cases in two processes: each is signed again after what was altered in it, and verified by
a new engine, by one that has verified all cases before it, and by dcap-qvl. A million mutated
quotes and parts of collateral go through the readers. The record, docs/records/dcap.json, has the
cases and the disagreements by class (classes.py). Anything else is a failure, and printed with the
command that repeats it. With --seconds the run stops after this time and writes no record, as in
continuous integration; nor does a run of one kind. With --stop-after it stops, too, and records the
cases that were run.
"""

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any, Final

from tests.long_runs.records import write_record
from tests.verifier.dcap.differential.cases import (
    ACCEPTED_BY_BOTH,
    FAILED,
    PROGRAM,
    REJECTED_BY_BOTH,
    UNEXPLAINED,
    Done,
    Work,
    run,
    run_case,
)
from tests.verifier.dcap.differential.generators import GENERATORS
from tests.verifier.dcap.differential.readers import READERS

CASES: Final = 1_000_000
SEED: Final = 1
PROCESSES: Final = 2
CHUNK: Final = 500  # cases
READER_CHUNK: Final = 5_000
SHOWN: Final = 20  # failures


def plan(
    group: Iterable[str], cases: int, seed: int, deadline: float | None, chunk: int
) -> Iterator[Work]:
    """Yield the work for `cases` cases of a group of kinds, a chunk of each kind at a time."""
    kinds = list(group)
    each = -(-cases // max(1, len(kinds)))
    for first in range(0, each, chunk):
        for kind in kinds:
            yield Work(kind, seed, first, min(chunk, each - first), deadline)


def main() -> int:
    """Return 0 if every disagreement is of an allowed class, and no reader failed."""
    options = _options()
    if options.number is not None:
        outcome, failure = run_case(options.kind, options.seed, options.number)
        _say(f"{outcome}: {failure}" if failure else outcome)
        return 1 if failure else 0
    figures: dict[str, Any] = {
        "command": " ".join([PROGRAM, *sys.argv[1:]]),
        "dcap_qvl": version("dcap-qvl"),
        "seed": options.seed,
        "processes": PROCESSES,
    }
    failures: list[str] = []
    begin, limit = time.monotonic(), options.seconds or options.stop_after
    with ProcessPoolExecutor(
        PROCESSES,
        get_context("spawn"),
        initializer=warnings.simplefilter,  # of cryptography, about odd serial numbers
        initargs=("ignore",),
    ) as pool:
        for name, group, chunk, share in (
            ("readers", READERS, READER_CHUNK, 0.2),
            ("evidence", GENERATORS, CHUNK, 1.0),
        ):
            start = time.monotonic()
            deadline = None if limit is None else begin + share * limit
            kinds = [kind for kind in group if options.kind in {kind, None}]
            work = plan(kinds, options.cases, options.seed, deadline, chunk)
            tallies = _collect(pool.map(run, work), failures)
            figures[name] = _figures(tallies, time.monotonic() - start)
    if options.seconds is None and options.kind is None:
        write_record("dcap", figures | {"failures": len(failures)})
    _say(json.dumps(figures, indent=1))
    _say("\n".join([f"{len(failures)} failures", *failures[:SHOWN]]))
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare the DCAP engine with dcap-qvl.")
    parser.add_argument("--cases", type=int, default=CASES, help="cases, and inputs of the readers")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument(
        "--kind", choices=[*GENERATORS, *READERS], help="one kind; writes no record"
    )
    parser.add_argument("--seconds", type=float, help="stop after these; writes no record")
    parser.add_argument("--stop-after", type=float, help="stop after these, and write the record")
    parser.add_argument("--number", type=int, help="repeat this case of a kind")
    options = parser.parse_args()
    if options.number is not None and options.kind is None:
        parser.error("--number needs --kind")
    return options


def _collect(results: Iterable[Done], failures: list[str]) -> dict[str, Counter[str]]:
    """Return the outcomes by kind, and append the failures."""
    tallies: dict[str, Counter[str]] = {}
    for done in results:
        tallies.setdefault(done.kind, Counter()).update(done.outcomes)
        failures.extend(done.failures)
    return tallies


def _figures(tallies: dict[str, Counter[str]], seconds: float) -> dict[str, Any]:
    cases = sum(tally.total() for tally in tallies.values())
    return {
        "cases": cases,
        "seconds": round(seconds, 1),
        "cases_per_second": round(cases / seconds),
        "by_kind": {
            kind: _reader_figures(tally) if kind in READERS else _kind_figures(tally)
            for kind, tally in tallies.items()
        },
    }


def _reader_figures(tally: Counter[str]) -> dict[str, int]:
    outcomes = ("accepted", "rejected", FAILED)
    return {"cases": tally.total(), **{name: tally[name] for name in outcomes}}


def _kind_figures(tally: Counter[str]) -> dict[str, Any]:
    agreed = {name: tally[name] for name in (ACCEPTED_BY_BOTH, REJECTED_BY_BOTH)}
    allowed = {name: n for name, n in tally.most_common() if name not in {*agreed, UNEXPLAINED}}
    return {
        "cases": tally.total(),
        **{name.replace(" ", "_"): n for name, n in agreed.items()},
        "disagreements": allowed,
        "unexplained": tally[UNEXPLAINED],
    }


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
