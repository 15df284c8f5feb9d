"""The table of independent programs names tests that exist."""

from typing import Any

import pytest

from tests.docs.promises import read_tests
from tests.judges.__main__ import JUDGES, find_version, summarise
from tests.long_runs.outcomes import Outcomes
from tests.long_runs.records import ROOT
from tests.runner.cases import every_case


@every_case("judge", JUDGES, ids=lambda judge: judge["name"])
def test_tests_of_a_judge_exist(judge: dict[str, Any]) -> None:
    """Each path exists, and so does each function named in it."""
    for test in judge["tests"]:
        path, _, name = test.partition("::")
        assert (ROOT / path).exists(), test
        if name:
            assert name in read_tests(path), test


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        (("passed", "skipped"), "accepted"),
        (("passed", "failed"), "refused"),
        (("skipped", "skipped"), "not here"),
    ],
)
def test_outcome_of_a_judge(outcomes: tuple[str, str], expected: str) -> None:
    """One failure is a refusal, and a program none of whose tests ran is not here."""
    kept = Outcomes()
    kept.outcomes = {
        "a.py::test_a": outcomes[0],
        "a.py::test_b[1]": outcomes[1],
        "b.py::test": "failed",
    }
    judge = {"name": "n", "given": "g", "version": "1.0", "tests": ["a.py::test_a", "a.py::test_b"]}
    row = summarise(judge, kept)
    assert row is not None
    assert row["outcome"] == expected


def test_judge_without_selected_tests_has_no_row() -> None:
    """A part of the run prints only the programs that it ran."""
    judge = {"name": "n", "given": "g", "version": "1.0", "tests": ["a.py"]}
    assert summarise(judge, Outcomes()) is None


def test_version_of_a_missing_program() -> None:
    """A missing distribution, package or command has no version."""
    missing = ("python no-such-thing", "npm no-such-thing", "no-such-command --version")
    assert {find_version(text) for text in missing} == {"not here"}
