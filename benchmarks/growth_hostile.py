"""What hostile input costs each reader: time, and resident memory, C's included.

`python -m benchmarks.growth_hostile` finds the dearest shape of each parser at the largest size
that is read, or 1 MiB, measures it there and at a half, a quarter and an eighth, and writes the
table in docs/security/bounds.md. An exponent is the slope of time against size, both logarithmic: 1
is linear, 2 quadratic. Times are the process's own, on the processor.
"""

import argparse
import ctypes
import gc
import os
import re
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import Final, NamedTuple, TypeVar

from benchmarks.growth import MOST, exponent
from tests.bounds.fitting import enters, largest, refusal, shortened
from tests.bounds.parsers import PARSERS, Parser, run
from tests.long_runs.records import ROOT

__all__ = ["Cost", "main", "measure", "row"]

DOCUMENT: Final = ROOT / "docs/security/bounds.md"
HEAD: Final = (
    "| reader | dearest shape | measured to | ns a byte | exponent | resident bytes a byte "
    "| allocated at most | lines at most |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)
TABLE: Final = re.compile(re.escape(HEAD) + r"\n(\|.*\n)*")
MOST_BYTES: Final = 1 << 20  # what may be longer is measured to here
LEAST: Final = 4096  # bytes; what a call costs shows in less, and not what a byte does
WARM: Final = 10  # calls after which the interpreter has specialised the code that they run
CALLS: Final = 5  # of which the best counts
FEW: Final = 4  # shapes that one call each finds the dearest, and that are measured well
FLAT: Final = 0.5  # an exponent of what is refused at once
_A = TypeVar("_A")
_B = TypeVar("_B")


class Input(NamedTuple):
    """A shape of a size that the reader reads, or goes through as far as it does at all."""

    parser: str
    shape: str
    size: int  # what the shape is asked for

    def data(self, shift: int = 0) -> bytes:
        """Return it, or a half, a quarter of it."""
        return PARSERS[self.parser].shapes[self.shape](self.size >> shift)


class Cost(NamedTuple):
    """What the dearest shape of a parser costs."""

    parser: str
    shape: str
    size: int  # bytes, the largest
    nanoseconds: float  # a byte, at the largest size
    exponent: float  # of time without the garbage collector's
    resident: float  # bytes a byte, of the shape that takes most


def measure(name: str) -> Cost:
    """Measure one parser.

    Raises:
        ValueError: The dearest input was not read, but refused for its size or count.
    """
    cost, inputs = _alone(_time, name)
    return cost._replace(resident=_alone(_resident, inputs))


def _alone(work: Callable[[_A], _B], given: _A) -> _B:
    """Do it in a process of its own, whose heap has no room that others have left."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(work, given).result()


def _time(name: str) -> tuple[Cost, list[Input]]:
    """Return what the dearest input takes but for memory, and all inputs."""
    parser = PARSERS[name]
    inputs = [found for shape in parser.shapes for found in _inputs(name, shape)]
    few = sorted(inputs, key=lambda one: _each(parser, one.data(), 1))[-FEW:]
    dearest = max(few, key=lambda one: _each(parser, one.data()))
    data = dearest.data()
    nanoseconds = _each(parser, data) * 1e9
    slope = _slope(parser, [dearest.data(shift) for shift in range(3, -1, -1)])
    if not enters(parser, data) or (slope < FLAT and refusal(parser, data)):
        told = f"{len(data)} bytes of {dearest.shape!r}: {refusal(parser, data)}"
        raise ValueError(f"{name} did not read {told}")
    return Cost(name, dearest.shape, len(data), nanoseconds, slope, 0), inputs


def _inputs(name: str, shape: str) -> Iterator[Input]:
    """Yield a shape as long as it may be, and as long as it is read if that is less.

    Either may be the dearest: some counts are known only when all has been read.
    """
    parser = PARSERS[name]
    make, most = parser.shapes[shape], min(MOST_BYTES, parser.most)
    longest, read = shortened(make, most), largest(parser, make, most)
    for _ in range(WARM):
        run(parser, make(LEAST))
    yield Input(name, shape, longest)
    if read < longest and len(make(read)) >= LEAST:
        yield Input(name, shape, read)


def _slope(parser: Parser, inputs: list[bytes]) -> float:
    """Return the exponent of processor time, without the garbage collector's.

    That begins to show at some size, and bends what is straight before and after.
    """
    gc.disable()
    try:
        seconds = [_each(parser, data) * len(data) for data in inputs]
    finally:
        gc.enable()
    return exponent([len(data) for data in inputs], seconds)


def _each(parser: Parser, data: bytes, calls: int = CALLS) -> float:
    """Return the processor time of the best of some calls, in seconds a byte."""
    best = []
    for _ in range(calls):
        gc.collect()  # what others left is not this call's
        begin = process_time()
        run(parser, data)
        best.append(process_time() - begin)
    return max(min(best), 1e-9) / len(data)


def _resident(inputs: list[Input]) -> float:
    """Return how much more memory a child had at most during a call, a byte of input."""
    most = 0.0
    for one in inputs:
        parser, data, small = PARSERS[one.parser], one.data(), one._replace(size=LEAST).data()
        bytes_more = _in_child(partial(run, parser, small), partial(run, parser, data))
        most = max(most, bytes_more / len(data))
    return most


def _in_child(before: Callable[[], None], work: Callable[[], None]) -> int:
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        before()  # a child has none of its libraries' pages until it uses them
        ctypes.CDLL(None).malloc_trim(0)  # what was freed would be used again, unseen
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        had = _peak()
        work()
        os.write(writing, str(_peak() - had).encode())
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
    digits = 0 if cost.nanoseconds >= 10 else 1
    numbers = f"{cost.nanoseconds:.{digits}f} | {cost.exponent:.2f} | {cost.resident:.0f}"
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
