"""`attestkit verify-many` as a program: signals, an input that waits, and a lost cluster."""

import json
import os
import select
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from tests.cli import schemas
from tests.cli.evidence_files import Files
from tests.cli.program import start
from tests.long_runs import fleet
from tests.thorough import slow

LONG = 300  # seconds


@pytest.fixture
def line(files: Files) -> bytes:
    """A line with valid evidence."""
    return json.dumps({"evidence": files.evidence.read_bytes().hex()}).encode() + b"\n"


def read_line(output: IO[bytes] | None) -> bytes:
    """Return the next result; fail after a timeout."""
    assert output is not None
    ready, _, _ = select.select([output], [], [], LONG)
    assert ready, "no result while the input waits"
    return output.readline()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), *slow((signal.SIGTERM, -signal.SIGTERM), (None, 5))],
)
def test_verify_many_writes_result_before_next_line(
    number: signal.Signals | None, code: int, files: Files, line: bytes
) -> None:
    """A result is written before the next line arrives, and no worker outlives the command."""
    words = ["verify-many", "-", *files.trusted, "--workers", "1"]
    pipe = subprocess.PIPE
    with start(*words, bufsize=0, stdin=pipe, start_new_session=True) as process:
        assert process.stdin is not None
        for place in (1, 2):
            process.stdin.write(line)
            text = read_line(process.stdout).decode()
            assert schemas.check("verify-many", text)["number"] == place
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


ORDERLY = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.slow
@pytest.mark.parametrize("number", [*ORDERLY, signal.SIGKILL])
def test_verify_many_interrupted_leaves_complete_lines(
    number: int, files: Files, line: bytes, tmp_path: Path
) -> None:
    """An interrupted run leaves complete lines, no table and no workers."""
    pipe, out, table = tmp_path / "pipe", tmp_path / "out", tmp_path / "table"
    os.mkfifo(pipe)
    words = [str(pipe), *files.trusted, "--workers", "1", "--window", "4", "--parquet", str(table)]
    with (
        out.open("wb") as output,
        start("verify-many", *words, stdout=output, start_new_session=True) as process,
        pipe.open("wb", buffering=0) as feed,
    ):
        while out.stat().st_size == 0:
            feed.write(line)
        # A terminal interrupts all processes; other signals reach the command only.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, error = process.communicate(timeout=LONG)
    assert process.returncode in {130, -number}
    assert b"Traceback" not in error
    text = out.read_bytes()
    assert text.endswith(b"\n")
    for each in text.splitlines():
        schemas.check("verify-many", each.decode())
    assert not table.exists()
    assert bool(list(tmp_path.glob(".table.*"))) == (number == signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.filterwarnings(fleet.DASK_WARNING)
def test_verify_many_continues_after_losing_cluster(files: Files, line: bytes) -> None:
    """If the cluster is lost during the run, local workers finish it, with one warning."""
    pytest.importorskip("distributed")
    with ExitStack() as stack:
        with fleet.cluster(1) as client:
            words = ["verify-many", "-", *files.trusted, "--scheduler", client.scheduler.address]
            process = stack.enter_context(start(*words, bufsize=0, stdin=subprocess.PIPE))
            assert process.stdin is not None
            process.stdin.write(line)
            assert b'"accepted"' in read_line(process.stdout)
        out, captured = process.communicate(line * 20, timeout=LONG)
    assert process.returncode == 0
    assert out.count(b'"accepted"') == out.count(b"\n") == 20
    assert captured.startswith(b"attestkit: executor failed (")
    assert captured.count(b"\n") == 1
