"""What hostile input costs each reader: time, and resident memory, C's included.

`python -m benchmarks.growth_hostile` finds the dearest shape of each parser, measures it at four
sizes up to 1 MiB, and writes the table in docs/bounds.md. An exponent is the slope of time against
size, both logarithmic: 1 is linear, 2 quadratic.
"""

import argparse
import ctypes
import gc
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Final, NamedTuple

from benchmarks.growth import MOST, exponent
from tests.bounds.counting import peak
from tests.bounds.parsers import CASES, PARSERS, Case, run
from tests.records import ROOT

__all__ = ["Cost", "main", "measure", "row"]

DOCUMENT: Final = ROOT / "docs" / "bounds.md"
HEAD: Final = (
    "| reader | dearest shape | measured to | ns a byte | exponent | resident bytes a byte "
    "| allocated at most | lines at most |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)
TABLE: Final = re.compile(re.escape(HEAD) + r"\n(\|.*\n)*")
FIRST: Final = 16_384  # bytes
LARGEST: Final = 1_000_000  # below each limit of 1 MiB, also with what stands around it
ENOUGH: Final = 0.5  # seconds of one call, which then needs no second


class Cost(NamedTuple):
    """What the dearest shape of a parser costs."""

    parser: str
    shape: str
    size: int  # bytes, the largest
    nanoseconds: float  # a byte, at the largest size
    exponent: float  # of time without the garbage collector's
    resident: float  # bytes a byte


def measure(name: str) -> Cost:
    """Measure one parser."""
    parser = PARSERS[name]
    first, largest = min(FIRST, parser.most // 8), min(LARGEST, parser.most)
    cases = [case for case in CASES if case.parser == name]
    dearest = max(cases, key=lambda case: _seconds(case, first) / len(case.make(first)))
    fullest = max(cases, key=lambda case: _allocated(case, first))
    resident = max(_resident(case, largest) for case in {dearest, fullest})
    sizes = [largest >> shift for shift in range(3, -1, -1)]
    inputs = [dearest.make(size) for size in sizes]
    nanoseconds = _seconds(dearest, largest) / len(inputs[-1]) * 1e9
    gc.disable()  # it begins to show at some size, and bends what is straight before and after
    seconds = [_seconds(dearest, size) for size in sizes]
    gc.enable()
    lengths = [len(data) for data in inputs]
    slope = exponent(lengths, seconds) if lengths[0] < lengths[-1] else 0.0
    return Cost(name, dearest.shape, lengths[-1], nanoseconds, slope, resident)


def _seconds(case: Case, size: int) -> float:
    """Return the processor time of the best of some calls."""
    parser, data = PARSERS[case.parser], case.make(size)
    best = []
    for _ in range(3):
        begin = process_time()
        run(parser, data)
        best.append(process_time() - begin)
        if best[0] > ENOUGH:
            break
    return max(min(best), 1e-9)


def _allocated(case: Case, size: int) -> float:
    """Return what Python allocates, a byte of input."""
    parser, data = PARSERS[case.parser], case.make(size)
    return peak(lambda: run(parser, data)) / len(data)


def _resident(case: Case, size: int) -> float:
    """Return how much more memory a child had at most during a call, a byte of input."""
    parser, data = PARSERS[case.parser], case.make(size)
    run(parser, case.make(1000))
    return _in_child(lambda: run(parser, data)) / len(data)


def _in_child(work: Callable[[], None]) -> int:
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be used again, unseen
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _peak()
        work()
        os.write(writing, str(_peak() - before).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        found = int(file.read() or b"0")
    os.waitpid(child, 0)
    return max(found, 0)


def _peak() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def row(cost: Cost) -> str:
    """Return a row of the table."""
    parser = PARSERS[cost.parser]
    numbers = f"{cost.nanoseconds:.0f} | {cost.exponent:.2f} | {cost.resident:.0f}"
    bounds = f"{parser.memory} | {parser.steps}"
    return f"| {cost.parser} | {cost.shape} | {cost.size:,} | {numbers} | {bounds} |"


def main(words: list[str] | None = None) -> int:
    """Measure every parser, and write the table; return 1 if something is not linear."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.growth_hostile")
    options.add_argument("--strict", action="store_true", help="fail if something is not linear")
    options.add_argument("--document", type=Path, default=DOCUMENT)
    options.add_argument("names", nargs="*", help="of the readers to measure; all, if none")
    given = options.parse_args(words)
    text = given.document.read_text(encoding="utf-8")
    rows = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line[:2] == "| "}
    costs = []
    for name in given.names or PARSERS:
        costs.append(measure(name))
        rows[name] = row(costs[-1])
        print(rows[name], flush=True)
        table = "\n".join([HEAD, *(rows[one] for one in PARSERS if one in rows)]) + "\n"
        given.document.write_text(TABLE.sub(table, text), encoding="utf-8")
    bent = [cost.parser for cost in costs if cost.exponent > MOST and cost.nanoseconds > 1]
    print("\n".join(f"NOT LINEAR: {name}" for name in bent) or "everything is linear")
    return 1 if bent and given.strict else 0


if __name__ == "__main__":
    raise SystemExit(main())
