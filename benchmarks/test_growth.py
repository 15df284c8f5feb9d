"""Every subject of `make growth` does its work, at its smallest sizes, in its own process."""

import json
import subprocess
import sys

import pytest

from benchmarks.growth import Point
from benchmarks.growth_subjects import SUBJECTS
from tests.long_runs.records import ROOT


@pytest.mark.parametrize("name", SUBJECTS)
def test_smallest_size(name: str) -> None:
    """A child measures one size and says so in JSON."""
    size = SUBJECTS[name].sizes[0]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.growth"),
            *("--one", name, str(size), "--seconds", "0.01"),
        ],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )
    point = Point(*json.loads(done.stdout))
    assert (point.subject, point.size) == (name, size)
    assert point.seconds > 0
    assert point.kept >= 0
