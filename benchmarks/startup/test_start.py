"""From the start of a process to its first `Quote.parse`, beside a bare interpreter.

What counts is the median of the differences, the two having taken turns; beside it stands that of
the processor's time, which neighbours on a busy machine do not touch.
"""

import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from time import perf_counter
from typing import Final, NamedTuple

import pytest

from benchmarks.cases import OURS
from benchmarks.racing import Ledger
from benchmarks.results import Result
from benchmarks.samples import samples

PROGRAMS: Final = {
    OURS: "import sys, attestkit; attestkit.Quote.parse(open(sys.argv[1], 'rb').read())",
    "bare interpreter": "import sys; open(sys.argv[1], 'rb').read()",
}
ROUNDS: Final = 60


@pytest.fixture(scope="module")
def quote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a quote."""
    path = tmp_path_factory.mktemp("start") / "quote"
    path.write_bytes(samples().quote)
    return path


class Took(NamedTuple):
    """Seconds that a whole process takes, from nothing to the end."""

    wall: float
    processor: float


def _took(program: str, quote: Path) -> Took:
    before, begin = _processor(), perf_counter()
    subprocess.run([sys.executable, "-c", program, quote], check=True)
    return Took(perf_counter() - begin, _processor() - before)


def _processor() -> float:
    """Return the processor's seconds that ended children had."""
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_start(quote: Path, ledger: Ledger, *, quick: bool) -> None:
    """Both programs, in turns."""
    for program in PROGRAMS.values():
        _took(program, quote)  # has its files read
    rounds = [
        {name: _took(program, quote) for name, program in PROGRAMS.items()}
        for _ in range(1 if quick else ROUNDS)
    ]
    if quick:
        return
    values = {name: median(one[name].wall for one in rounds) for name in PROGRAMS}
    pairs = [(one[OURS], one["bare interpreter"]) for one in rounds]
    figure = median(ours.wall - bare.wall for ours, bare in pairs) * 1000
    work = median(ours.processor - bare.processor for ours, bare in pairs) * 1000
    what, note = "start to first Quote.parse, over a bare interpreter", f"{work:.1f} ms of work"
    ledger.add(Result("start", what, "s", values, {}, figure, note))
