"""Results as Parquet: what pyarrow has to do."""

import json
from pathlib import Path

import pytest

from attestkit.__main__ import main
from tests.cli import evidence_files


def test_a_table_of_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It reads back as the lines that were written; whatever release of pyarrow is here."""
    parquet = pytest.importorskip("pyarrow.parquet")
    files = evidence_files.write(tmp_path)
    good = {"id": "good", "evidence": files.evidence.read_bytes().hex()}
    lines = files.put("lines", f"{json.dumps(good)}\n{{\n".encode())
    table = tmp_path / "table"
    words = ["verify-many", str(lines), *files.trusted, "--workers", "0", "--parquet", str(table)]
    assert main(words) == 5
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = parquet.read_table(table).to_pylist()
    assert [row["number"] for row in rows] == [1, 2]
    for name in ("number", "verdict", "error", "steps"):
        assert [row[name] for row in rows] == [one.get(name) for one in written]
