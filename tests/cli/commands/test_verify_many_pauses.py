"""`attestkit verify-many` with an input that waits for each result."""

import json
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from attestkit.__main__ import main
from tests.cli import evidence_files, schemas
from tests.serve.server import environment

LONG = 120  # seconds


def read_result(output: IO[bytes]) -> dict[str, object]:
    """Return the next result; fail after a timeout."""
    ready, _, _ = select.select([output], [], [], LONG)
    assert ready, "no result while the input waits"
    found: dict[str, object] = schemas.check("verify-many", output.readline().decode())
    return found


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, -signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(None, 5, marks=pytest.mark.slow),
    ],
)
def test_verify_many_writes_result_before_next_line(
    number: signal.Signals | None, code: int, tmp_path: Path
) -> None:
    """A result is written before the next line arrives, and no worker outlives the command."""
    files = evidence_files.write(tmp_path)
    line = json.dumps({"evidence": files.evidence.read_bytes().hex()}).encode() + b"\n"
    words = ["-m", "attestkit", "verify-many", "-", *files.trusted, "--workers", "1"]
    program = subprocess.Popen(
        [sys.executable, *words],
        env=environment(),
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with program as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for place in (1, 2):
            process.stdin.write(line)
            assert read_result(process.stdout)["number"] == place
        process.stdin.write(b"{")  # an incomplete line
        if number is None:
            process.stdin.close()
            process.stdin = None
        else:
            process.send_signal(number)
        rest, error = process.communicate(timeout=LONG)
    assert process.returncode == code
    assert rest.count(b"\n") == (number is None)
    for word in (b"Traceback", b"Fatal", b"thread"):
        assert word not in error, error.decode()


def test_verify_many_file_named_dash_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file named `-` in the directory is read, not stdin."""
    files = evidence_files.write(tmp_path)
    folder = tmp_path / "fleet"
    folder.mkdir()
    (folder / "-").write_bytes(files.evidence.read_bytes())
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", None)
    for place in (".", str(folder)):
        assert main(["verify-many", place, *files.trusted, "--workers", "0"]) == 0
        found = schemas.check("verify-many", capsys.readouterr().out)
        assert (found["id"], found["verdict"]) == ("-", "accepted")


def test_verify_many_collateral_named_dash_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collateral named `-` in a line is a file, not stdin."""
    files = evidence_files.write(tmp_path)
    (tmp_path / "-").write_bytes(files.collateral.read_bytes())
    line = {"evidence": files.evidence.read_bytes().hex(), "collateral": "-"}
    lines = files.put("lines", json.dumps(line).encode())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)
    at = files.trusted.index("--collateral")
    without = files.trusted[:at] + files.trusted[at + 2 :]
    for workers in ("0", "1"):
        assert main(["verify-many", str(lines), *without, "--workers", workers]) == 0
        assert schemas.check("verify-many", capsys.readouterr().out)["verdict"] == "accepted"
