"""Tables and examples of docs/policy.md match the code; tests/docs runs its blocks."""

from pathlib import Path

import pytest

from attestkit.verifier.policy.appraisal_policy import PRESETS, VERIFIED_PLATFORMS
from attestkit.verifier.result import TcbStatus

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "policy.md"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="docs/policy.md is not here")


def _table(first: str) -> list[list[str]]:
    """Return the cells of the table whose first column has this title, without its head."""
    lines = GUIDE.read_text().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[0], *rows[2:]]


def test_presets_match_table() -> None:
    """There is a row per status and a column per preset; "grace" does not count as accepted."""
    head, *rows = _table("TCB status")
    assert head[1:] == list(PRESETS)
    assert [row[0] for row in rows] == [status.value for status in TcbStatus]
    for status, *cells in rows:
        for preset, cell in zip(PRESETS.values(), cells, strict=True):
            assert (cell == "yes") == (TcbStatus(status) in preset().accepted_statuses), status


def test_platforms_match_table() -> None:
    """There is a column for every platform that can be verified."""
    head, *rows = _table("rule")
    assert [name.strip("`") for name in head[1:]] == list(VERIFIED_PLATFORMS)
    assert all(len(row) == len(head) for row in rows)
