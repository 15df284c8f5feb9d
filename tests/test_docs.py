"""The tables and examples of docs/policy.md are what the code does; its blocks run as a page."""

import re
from pathlib import Path

import pytest

from attestkit.verifier.policy.appraisal_policy import PRESETS, VERIFIED_PLATFORMS, AppraisalPolicy
from attestkit.verifier.result import TcbStatus

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "policy.md"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="docs/policy.md is not here")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)


def _table(first: str) -> list[list[str]]:
    """Return the cells of the table whose first column is called so, without its head."""
    lines = GUIDE.read_text().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def test_the_toml_examples_are_policies() -> None:
    """Each is a whole policy, and says what the text beside it says."""
    first, second = map(AppraisalPolicy.from_toml, _blocks("toml"))
    assert first.platform_grace_period == first.qe_grace_period
    assert first.app_id is not None
    assert first.compose_hash is not None
    assert (len(first.app_id), len(first.compose_hash), len(first.required_events)) == (1, 2, 2)
    assert first.accepted_statuses == AppraisalPolicy.default().accepted_statuses
    assert second.accepted_advisories == frozenset()
    assert second.minimum_svns == (("boot_loader", 4), ("microcode", 213), ("snp", 23))


def test_the_presets_are_those_of_the_table() -> None:
    """A row for every status, a column for every preset; "grace" is no acceptance."""
    head, *rows = _table("TCB status")
    assert head[1:] == list(PRESETS)
    assert [row[0] for row in rows] == [status.value for status in TcbStatus]
    for status, *cells in rows:
        for preset, cell in zip(PRESETS.values(), cells, strict=True):
            assert (cell == "yes") == (TcbStatus(status) in preset().accepted_statuses), status


def test_the_platforms_are_those_of_the_table() -> None:
    """A column for every platform that is verified here."""
    head, *rows = _table("rule")
    assert [name.strip("`") for name in head[1:]] == list(VERIFIED_PLATFORMS)
    assert all(len(row) == len(head) for row in rows)
