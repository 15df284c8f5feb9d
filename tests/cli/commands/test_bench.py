"""`attestkit bench`."""

import json
from importlib.metadata import PackageNotFoundError

import pytest

from attestkit.__main__ import main
from attestkit._package import own_version
from attestkit.cli.commands.bench import host_facts


def test_bench_json_has_times_of_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    """`bench --json` has positive times and host facts."""
    assert main(["bench", "--json", "--seconds", "0.2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"cpu", "cores", "python", "core", "kernels"} <= set(found["host"])
    assert {"quote", "replay", "ccel", "verify"} <= {row["row"] for row in found["rows"]}
    assert all(row["seconds"] > 0 and row["rounds"] >= 5 for row in found["rows"])


def test_bench_text_has_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The text output has the machine and a line per case."""
    assert main(["bench", "--seconds", "0.1"]) == 0
    shown = capsys.readouterr().out
    assert "This machine" in shown
    assert "replay of 64 logs" in shown


def test_host_facts_without_metadata_has_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without package metadata the version is `unknown`."""

    def no_metadata(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", no_metadata)
    monkeypatch.setattr("attestkit._package.own_version", own_version.__wrapped__)
    assert host_facts()["attestkit"] == "0+unknown"


@pytest.mark.parametrize("seconds", ["0", "x", "1e9", "inf", "-inf"])
def test_bench_rejects_invalid_seconds(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An invalid --seconds is a usage error in one line."""
    assert main(["bench", "--seconds", seconds]) == 1
    error = capsys.readouterr().err
    assert "--seconds" in error
    assert error.count("\n") == 1
