"""Give changed quotes and logs to the compiled core and to plain Python: `make differential`.

Inputs grow from real logs: what reaches a new outcome is kept and changed further. A seed makes the
same inputs again. An input of which the two say different things is made small, written to
fuzz/failures and printed. The record, docs/records/differential.json, says how many inputs each
reader got; with --seconds it stops after so many and writes nothing: the form that continuous
integration runs.
"""

import argparse
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from fuzz.walkers import Comparison, Walker, compare, sort_of, walkers
from tests.records import write_record

FAILURES = Path(__file__).parent / "failures"
# Parts of the inputs; those of the logs make one.
SHARES = {"json": 0.4, "ccel": 0.3, "tpm": 0.3, "quote": 0.1}
MOST_KEPT = 4000  # inputs of a corpus
LONGEST_KEPT = 8192  # bytes of a grown input: short ones are many times as fast
AT_A_TIME = 200  # inputs between two looks at the clock
MOST_SHOWN = 5


@dataclass
class Tally:
    """What came of one reader's inputs."""

    counts: Counter[str] = field(default_factory=Counter)  # of "claim, verdict"
    kept: int = 0  # seeds and grown inputs
    seconds: float = 0.0
    differing: int = 0
    grown: list[bytes] = field(default_factory=list)  # inputs, one of each sort
    failures: list[tuple[bytes, str]] = field(default_factory=list)  # small, and what was said

    @property
    def inputs(self) -> int:
        """How many there were."""
        return self.counts.total()

    def add(self, other: "Tally") -> None:
        """Count another one in."""
        self.counts += other.counts
        self.kept += other.kept
        self.seconds += other.seconds
        self.differing += other.differing
        self.grown += other.grown
        self.failures += other.failures

    def figures(self) -> dict[str, Any]:
        """Return what the record says."""
        return {
            "inputs": self.inputs,
            **dict(sorted(self.counts.items())),
            "kept": self.kept,
            "seconds_of_a_core": round(self.seconds, 1),
            "differences": self.differing,
        }


class Corpus:
    """The inputs that others are made from, taken apart: the seeds, then what they grew to."""

    def __init__(self, walker: Walker, dice: Random) -> None:
        """Start with the seeds."""
        self._walker = walker
        self._dice = dice
        self._seeds = [walker.dissect(data) for data in sorted(walker.seeds(), key=len)]
        self._grown: dict[str, list[Any]] = {"accepted": [], "refused": []}
        self._sorts: set[object] = set()
        self.grown: list[bytes] = []

    def __len__(self) -> int:
        return len(self._seeds) + len(self._sorts)

    def pick(self) -> Any:
        """Return one: most of the time one that both accept, for few changes are for the better."""
        chance = self._dice.random()
        grown = self._grown["refused" if chance < 0.1 else "accepted"]
        if chance < 0.5 and grown:
            return self._dice.choice(grown)
        # The square prefers the short seeds.
        return self._seeds[int(self._dice.random() ** 2 * len(self._seeds))]

    def consider(self, data: bytes, found: Comparison) -> None:
        """Keep an input of a new sort."""
        if len(data) > LONGEST_KEPT or len(self._sorts) >= MOST_KEPT:
            return
        sort = sort_of(self._walker, found)
        if sort not in self._sorts:
            self._sorts.add(sort)
            self.grown.append(data)
            self._grown[found.plain.kind].append(self._walker.dissect(data))


def fuzz(walker: Walker, seed: str, inputs: int, until: float = float("inf")) -> Tally:
    """Make inputs of one reader and compare; `until` is a time of the monotonic clock."""
    dice = Random(seed)
    corpus = Corpus(walker, dice)
    tally = Tally()
    start = time.monotonic()
    while tally.inputs < inputs and time.monotonic() < until:
        for _ in range(min(AT_A_TIME, inputs - tally.inputs)):
            data = walker.mutate(dice, corpus.pick(), corpus.pick())
            found = compare(walker, data)
            tally.counts[f"{found.claim}, {found.plain.kind}"] += 1
            if found.differs:
                tally.differing += 1
                if len(tally.failures) < MOST_SHOWN:
                    tally.failures.append(_failure(walker, data))
            else:
                corpus.consider(data, found)
    tally.seconds = time.monotonic() - start
    tally.kept, tally.grown = len(corpus), corpus.grown
    return tally


def _failure(walker: Walker, data: bytes) -> tuple[bytes, str]:
    small = minimised(data, lambda shorter: compare(walker, shorter).differs, walker.spans)
    found = compare(walker, small)
    said = f"claim {found.claim}\ncompiled {found.compiled}\nplain    {found.plain}"
    return small, said


def minimised(
    data: bytes,
    fails: Callable[[bytes], bool],
    spans: Callable[[bytes], list[tuple[int, int]]] = lambda _: [],
) -> bytes:
    """Return what is left of a failing input when nothing of it can go.

    First go the parts that `spans` names, then bytes, many at once and at last one by one.
    """
    while True:
        shorter = (data[:start] + data[end:] for start, end in spans(data) if start < end)
        failing = next(filter(fails, shorter), None)
        if failing is None:
            break
        data = failing
    size = max(1, len(data) // 2)
    before = b""
    while size > 1 or data != before:
        before = data
        at = 0
        while at < len(data):
            if fails(data[:at] + data[at + size :]):
                data = data[:at] + data[at + size :]
            else:
                at += size
        size = max(1, size // 2)
    return data


def _job(name: str, seed: str, inputs: int, seconds: float | None) -> tuple[str, Tally]:
    """Run in a process of its own."""
    until = float("inf") if seconds is None else time.monotonic() + seconds
    return name, fuzz(walkers()[name], seed, inputs, until)


def run(names: list[str], seed: int, inputs: int, seconds: float | None) -> dict[str, Tally]:
    """Let all cores work; each reader's inputs are made by as many processes as there are cores."""
    cores = os.cpu_count() or 1
    total = sum(SHARES[name] for name in names)
    tallies = {name: Tally() for name in names}
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(
                _job,
                name,
                f"{seed} {name} {part}",
                int(inputs * SHARES[name] / cores),
                None if seconds is None else seconds * SHARES[name] / total,
            )
            for name in names
            for part in range(cores)
        ]
        for job in jobs:
            name, tally = job.result()
            tallies[name].add(tally)
            print(f"{name}: {tally.figures()}", flush=True)
    return tallies


def _write_failures(tallies: dict[str, Tally]) -> None:
    for name, tally in tallies.items():
        for data, said in tally.failures:
            FAILURES.mkdir(exist_ok=True)
            path = FAILURES / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"{path}\n{data!r}\n{said}\n")


def main() -> int:
    """Return 0 if the two cores agreed on every input."""
    parser = argparse.ArgumentParser(description="Compare the compiled core with plain Python.")
    parser.add_argument("--inputs", type=int, default=10_000_000, help="of logs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="stop after so many, and record nothing")
    parser.add_argument("names", nargs="*", metavar="WALKER", help=", ".join(SHARES))
    options = parser.parse_args()
    names = options.names or list(SHARES)
    for name in names:  # argparse would look for no names at all in its choices
        if name not in SHARES:
            parser.error(f"invalid choice: {name!r} (choose from {', '.join(SHARES)})")
    start = time.monotonic()
    tallies = run(names, options.seed, options.inputs, options.seconds)
    seconds = time.monotonic() - start
    count = sum(tally.inputs for tally in tallies.values())
    differing = sum(tally.differing for tally in tallies.values())
    print(f"{count} inputs in {seconds:.0f} s, {count / seconds:.0f} a second; {differing} differ")
    _write_failures(tallies)
    if options.seconds is None and names == list(SHARES):
        asked = f"--inputs {options.inputs} --seed {options.seed}"
        figures = {
            "command": f"python -m fuzz.differential {asked}",
            "inputs": count,
            "seconds": round(seconds),
            "differences": differing,
            "by_walker": {name: tally.figures() for name, tally in tallies.items()},
        }
        write_record("differential", figures)
    return 1 if differing or not count else 0


if __name__ == "__main__":
    sys.exit(main())
