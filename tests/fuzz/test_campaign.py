"""The fuzzing campaign: it adds up libFuzzer's figures, and reports planted mistakes."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")
pytest.importorskip("cffi", reason="cffi builds the native core, and is not here")

from fuzz import campaign
from fuzz.core import drivers
from tests.long_runs.records import ROOT
from tests.processes import run_program


@pytest.mark.slow
def test_planted_mistakes_are_found(tmp_path: Path) -> None:
    """The inputs are stored with the sanitizer's reports, and the exit code is 1."""
    if drivers.clang() is None:
        pytest.skip("clang is not installed")
    reports = {"overread": "heap-buffer-overflow", "undefined": "integer overflow"}
    targets = [f"core-{target}" for target in reports]
    command = [sys.executable, "-m", "fuzz.campaign", "--seconds", "4", *targets]
    done = run_program(*command, "--failures", str(tmp_path), cwd=ROOT)
    if "runtime" in done.stderr:
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 1, done.stdout + done.stderr
    for target, report in reports.items():
        [log] = tmp_path.glob(f"core-{target}-*.log")
        assert report in log.read_text()
        assert f"found: {tmp_path}/core-{target}-crash-" in done.stdout


def test_record_renews_named_targets_and_keeps_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of targets that did not run stay in the record and in its sums."""
    other = {"executions": 5, "findings": 2, "open_findings": 0, "seconds": 1.0}
    path = tmp_path / "fuzz.json"
    path.write_text(json.dumps({"by_target": {"parser-other": other, "parser-one": other}}))
    monkeypatch.setattr(campaign, "RECORD", path)
    one = campaign.Target("parser-one", "atheris", lambda _target, _run: None, goal=10)
    one.progress.executions = 7
    found = campaign.record([one])
    assert found["by_target"]["parser-other"] == other
    assert found["by_target"]["parser-one"]["executions"] == 7
    assert found["executions"] == 12
    assert found["findings"] == 2
    assert found["short_of_goal"] == ["parser-one"]
