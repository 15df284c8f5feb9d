"""From the start of a process to its first `Quote.parse`, beside a bare interpreter.

Run `pytest benchmarks/test_start.py`. What counts is the difference of the two medians, in one
run: at most 45 ms.
"""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import attestkit

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

PROGRAMS = {
    "bare": "import sys; open(sys.argv[1], 'rb').read()",
    "attestkit": "import sys, attestkit; attestkit.Quote.parse(open(sys.argv[1], 'rb').read())",
}


@pytest.fixture(scope="module")
def quote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a quote."""
    path = tmp_path_factory.mktemp("start") / "quote"
    with attestkit.open("simulator") as tee:
        path.write_bytes(tee.get_quote(bytes(64)).raw)
    return path


@pytest.mark.parametrize("name", PROGRAMS)
def test_start(benchmark: "BenchmarkFixture", name: str, quote: Path) -> None:
    """A whole process, from nothing to the end."""
    command = [sys.executable, "-c", PROGRAMS[name], str(quote)]
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: subprocess.run(command, check=True),  # noqa: S603 - our own program
        rounds=40,
        warmup_rounds=3,
    )
