"""Replay on CPUs that lack AVX-512, or everything: this one, told to use no more."""

import json
import subprocess
import sys

import pytest

from attestkit import _native
from benchmarks.racing import Ledger
from benchmarks.results import Result
from tests.long_runs.records import ROOT
from tests.serve.server import environment

LOWER = {"avx512": ("avx2", "portable"), "avx2": ("avx2", "portable"), "portable": ("portable",)}


@pytest.mark.parametrize("level", ["avx2", "portable"])
def test_lower_level(ledger: Ledger, level: str, *, quick: bool) -> None:
    """One log and 64, at a level that this CPU has."""
    if level not in LOWER.get(_native.CPU_LEVEL or "", ()):
        pytest.skip(f"kernels here: {_native.CPU_LEVEL or 'none, the core is plain Python'}")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.evidence.at_level", "0.01" if quick else "0.6"],
        env=environment(ATTESTKIT_CPU=level),
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    found = [Result(**result) for result in json.loads(done.stdout)]
    assert [result.row for result in found] == [
        f"{level}-{work}-{log}" for log in ("short", "long") for work in ("replay", "batch")
    ]
    for result in found if not quick else ():
        ledger.add(result)
