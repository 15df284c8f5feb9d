"""How time and memory grow with the input, each size in a process of its own.

`python -m benchmarks.growth` measures every subject at every size, holds the exponents to their
band, and writes docs/benchmarks/growth.md and growth.json beside it, but not if files differ from
their commit. Memory is resident memory, so what C allocates counts as well: `peak` is the most that
the process had during the work, `kept` what it still has while the result lives, both beyond what
it had with its input ready.
"""

import argparse
import ctypes
import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import Any, Final, NamedTuple

from benchmarks.growth_subjects import SUBJECTS
from benchmarks.results import differs, machine_facts
from benchmarks.timing import Call, digits, race, time_text
from tests.long_runs.records import BENCHMARKS, ROOT

__all__ = ["MOST", "Point", "exponent", "main", "measure", "page"]

# The most that an exponent may be, where 1 is linear and 2 quadratic: small sizes fit the caches
# and large ones do not, which bends linear work upwards.
MOST: Final = 1.35
COLUMNS: Final = (
    *("work", "sizes", "at the largest", "time each", "first each", "exponents"),
    *("peak each", "kept each"),
)
PREFACE: Final = f"""# Growth

Written by `make growth`. Exponents are slopes of time and of peak memory against size, both
logarithmic, from 1,000 on ({SUBJECTS["columns"].what}: from {SUBJECTS["columns"].linear_from:,}): 1
is linear, 2 quadratic; up to {MOST} is let pass, as small sizes fit the caches and large ones do
not. Times are processor time at the largest size, with memory that
the process has; `first` is the first call, which has to get it from the kernel, about 2 µs for
4 KiB. Memory is resident memory beyond the input, C's included: the most there was, and what is
left while the result lives. Neither counts the input, which a result may hold on to: a log keeps
the text that it was read from until its events were made. Logs end at both caps of the parsers,
65,536 events and 16 MiB.
"""
PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Point(NamedTuple):
    """What one size of a subject took."""

    subject: str
    size: int
    seconds: float  # once it has the memory it needs
    first: float  # seconds with memory that the kernel has yet to give
    peak: int | None  # bytes; None where the kernel does not count the peak anew
    kept: int


def measure(subject: str, size: int, seconds: float) -> Point:
    """Measure one size; in a process that has done nothing else."""
    _, _, make, work, sizes, _ = SUBJECTS[subject]
    work(make(sizes[0]))  # what is loaded late is loaded
    # Made by another process: what making it frees here would be used again, unseen.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        given = pool.submit(make, size).result()
    gc.collect()
    _keep_memory()
    before = _resident()
    counts = _forget_peak()
    begin = process_time()
    result = work(given)
    first = process_time() - begin
    peak, kept = _peak() - before, _resident() - before
    del result
    found = race({subject: Call(work, given)}, seconds)[subject].median
    return Point(subject, size, found, first, max(peak, 0) if counts else None, max(kept, 0))


def _keep_memory() -> None:
    """Have malloc give all it has to the kernel now, and nothing more later (mallopt(3))."""
    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)
    trim_threshold, mmap_threshold = -1, -3
    libc.mallopt(trim_threshold, 1 << 30)
    libc.mallopt(mmap_threshold, 1 << 30)


def exponent(sizes: list[int], values: list[float]) -> float:
    """Return the slope of a line through the logarithms, by least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    middle = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - middle[0]) * (b - middle[1]) for a, b in zip(x, y, strict=True))
    return above / sum((a - middle[0]) ** 2 for a in x)


def exponents(points: list[Point]) -> tuple[float, float | None]:
    """Return those of time and of peak memory, from the size on where they mean something."""
    least = SUBJECTS[points[0].subject].linear_from
    large = [point for point in points if point.size >= least]
    sizes = [point.size for point in large]
    peaks = [float(point.peak) for point in large if point.peak]
    # Memory below a megabyte is a matter of pages and of what malloc had at hand.
    some = len(peaks) == len(large) and peaks[-1] > 1 << 20 and min(peaks) > PAGE * 16
    time = exponent(sizes, [point.seconds for point in large])
    return time, exponent(sizes, peaks) if some else None


def page(facts: dict[str, Any], points: list[Point]) -> str:
    """Return the Markdown page."""
    rows = [_row(name, [p for p in points if p.subject == name]) for name in SUBJECTS]
    lines = [
        PREFACE,
        f"* commit: {facts['commit']}",
        f"* cpu: {facts['cpu']}, {facts['cores']} cores; kernels: {facts['kernels']}",
        f"* python: {facts['python']}",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{' --- |' * len(COLUMNS)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def faults(points: list[Point]) -> Iterator[str]:
    """Yield what is not linear."""
    for name in SUBJECTS:
        found = exponents([point for point in points if point.subject == name])
        for what, value in zip(("time", "memory"), found, strict=True):
            if value is not None and value > MOST:
                yield f"{name}: {what} grows with exponent {value:.2f}"


def main(words: list[str] | None = None) -> int:
    """Measure, write, and tell what is not linear; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="per size")
    parser.add_argument("--folder", type=Path, default=BENCHMARKS, help="where the documents go")
    parser.add_argument("--strict", action="store_true", help="fail if something is not linear")
    parser.add_argument("--one", nargs=2, metavar=("SUBJECT", "SIZE"), help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    if given.one:
        print(json.dumps(measure(given.one[0], int(given.one[1]), given.seconds)))
        return 0
    facts = machine_facts()
    points = [_in_child(name, n, given.seconds) for name in SUBJECTS for n in SUBJECTS[name].sizes]
    print(page(facts, points))
    if differs(facts):
        print(f"nothing written: what ran is not a commit, but {facts['commit']}")
    else:
        _write(given.folder, facts, points)
    found = list(faults(points))
    print("\n".join(f"NOT LINEAR: {fault}" for fault in found) or "everything is linear")
    return 1 if found and given.strict else 0


def _in_child(subject: str, size: int, seconds: float) -> Point:
    command = [sys.executable, "-m", __spec__.name, "--one", subject, str(size)]
    done = subprocess.run(
        [*command, "--seconds", str(seconds)], check=True, capture_output=True, cwd=ROOT
    )
    return Point(*json.loads(done.stdout))


def _write(folder: Path, facts: dict[str, Any], points: list[Point]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = {"facts": facts, "points": [point._asdict() for point in points]}
    (folder / "growth.json").write_text(json.dumps(found, indent=1) + "\n", encoding="ascii")
    (folder / "growth.md").write_text(page(facts, points), encoding="utf-8")


def _row(name: str, points: list[Point]) -> tuple[str, ...]:
    subject, last = SUBJECTS[name], points[-1]
    time, memory = exponents(points)
    return (
        subject.what,
        f"{points[0].size:,} to {last.size:,} {subject.unit}",
        time_text(last.seconds),
        time_text(last.seconds / last.size),
        time_text(last.first / last.size),
        f"time {time:.2f}" + ("" if memory is None else f", memory {memory:.2f}"),
        "not known" if last.peak is None else _each(last.peak, last.size),
        _each(last.kept, last.size),
    )


def _each(amount: int, size: int) -> str:
    return f"{digits(amount / size)} B"


def _status(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def _resident() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _forget_peak() -> bool:
    """Have the kernel count the peak from now on (proc_pid_clear_refs(5)); tell whether it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
