"""The fuzzing campaign: it adds up libFuzzer's figures, and reports planted mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")
pytest.importorskip("cffi")

from fuzz import drivers
from fuzz.campaign import Progress
from tests.records import ROOT

OUTPUT = """INFO: seed corpus: files: 2 min: 1b max: 2b total: 3b rss: 30Mb
#3\tINITED cov: 10 ft: 11 corp: 2/3b exec/s: 0 rss: 30Mb
#50\tNEW    cov: 12 ft: 13 corp: 3/9b lim: 4 exec/s: 0 rss: 30Mb L: 2/4 MS: 1 ChangeBit-
#100\tDONE   cov: 12 ft: 13 corp: 3/8b lim: 4 exec/s: 50 rss: 30Mb
stat::number_of_executed_units: 100
"""


def test_progress_adds_up_parts() -> None:
    """An edge is new if no part with that input size reached it; edges of the start are old."""
    done = Progress()
    done.add(OUTPUT, 2.0, "small")
    assert (done.executions, done.last_new, done.corpus, done.edges) == (100, 50, 3, {"small": 12})
    done.add(OUTPUT.replace("#50", "#60").replace("cov: 12", "cov: 13"), 2.0, "small")
    assert (done.executions, done.last_new, done.rate) == (200, 160, 50)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "report"), [("overread", "heap-buffer-overflow"), ("undefined", "integer overflow")]
)
def test_planted_mistake_is_found(target: str, report: str, tmp_path: Path) -> None:
    """The input is stored with the sanitizer's report, and the exit code is 1."""
    if drivers.clang() is None:
        pytest.skip("clang is not installed")
    command = [sys.executable, "-m", "fuzz.campaign", "--seconds", "4", f"core-{target}"]
    done = subprocess.run(
        [*command, "--failures", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "runtime" in done.stderr:
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 1, done.stdout + done.stderr
    [log] = tmp_path.glob("*.log")
    assert report in log.read_text()
    assert f"found: {tmp_path}/core-{target}-crash-" in done.stdout
