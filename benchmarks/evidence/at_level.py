"""Replay with fewer of the CPU's features than it has: a program, as a process has one level.

`ATTESTKIT_CPU=avx2 python -m benchmarks.evidence.at_level` prints the results as JSON.
"""

import json
import sys
from collections.abc import Iterator

from attestkit import _native
from benchmarks.cases import prepare_contenders
from benchmarks.evidence import event_logs
from benchmarks.racing import summary
from benchmarks.results import Result
from benchmarks.samples import samples
from benchmarks.timing import race

__all__ = ["measured"]


def measured(seconds: float) -> Iterator[Result]:
    """Race the rows that the level matters to, each for so many seconds."""
    level = _native.CPU_LEVEL
    for row in event_logs.CASES:
        if row.id.startswith(("replay-", "batch-")):
            found = summary(row, race(prepare_contenders(row, samples()).calls, seconds))
            yield found._replace(row=f"{level}-{row.id}", what=f"{row.title}, {level} at best")


if __name__ == "__main__":
    print(json.dumps([result._asdict() for result in measured(float(sys.argv[1]))]))
