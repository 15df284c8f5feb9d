"""From the start of a process to its first `Quote.parse`, beside a bare interpreter.

What counts is the median of the differences, the two having taken turns.
"""

import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import pytest

from attestkit.cli.bench_rows import OURS
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


def _took(program: str, quote: Path) -> float:
    """Return the seconds that a whole process takes, from nothing to the end."""
    begin = perf_counter()
    subprocess.run([sys.executable, "-c", program, quote], check=True)  # noqa: S603 - our own
    return perf_counter() - begin


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
    values = {name: median(one[name] for one in rounds) for name in PROGRAMS}
    figure = median(one[OURS] - one["bare interpreter"] for one in rounds) * 1000
    what = "start to first Quote.parse, over a bare interpreter"
    ledger.add(Result("start", what, "s", values, {}, figure))
