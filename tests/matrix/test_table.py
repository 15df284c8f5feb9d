"""Results as Parquet, with any supported pyarrow."""

import json
from pathlib import Path

import pytest

from attestkit.__main__ import main
from tests.cli import evidence_files


def test_table_round_trips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table read back equals the written lines."""
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
