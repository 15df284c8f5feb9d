"""`attestkit verify-many --scheduler` with a lost cluster."""

import json
import logging
import select
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from attestkit.__main__ import main
from attestkit.cli.batch import executors
from tests.cli import evidence_files
from tests.long_runs import fleet
from tests.serve.server import environment

LONG = 300  # seconds


@contextmanager
def lost_cluster(_address: str) -> Iterator[Executor]:
    """Yield an executor that fails, with log output of its library."""

    def fail() -> None:
        raise OSError("no thread")

    logger = logging.getLogger("distributed.of_a_test")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        logger.critical("a log line of the library")
        logging.getLogger("attestkit.other").critical("a log line of another logger")
        with ThreadPoolExecutor(1, initializer=fail) as pool:
            yield pool
    finally:
        logger.removeHandler(handler)


def test_verify_many_lost_cluster_is_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost cluster is one line with the cause, and logging is restored."""
    files = evidence_files.write(tmp_path)
    line = json.dumps({"evidence": files.evidence.read_bytes().hex()}).encode() + b"\n"
    path = files.put("lines", line * 40)
    monkeypatch.setattr(executors, "_cluster", lost_cluster)
    logger = logging.getLogger("attestkit.verifier")
    for before in (logging.NOTSET, logging.CRITICAL):  # disabled logging stays silent
        logging.disable(before)
        try:
            words = ["verify-many", str(path), *files.trusted, "--scheduler", "tcp://127.0.0.1:1"]
            assert main(words) == 0
            assert logging.root.manager.disable == before
        finally:
            logging.disable(logging.NOTSET)
        captured = capsys.readouterr()
        assert captured.out.count("\n") == 40
        if before:
            assert captured.err == ""
        else:
            assert captured.err.count("\n") == 1
            assert captured.err.startswith("attestkit: executor failed (BrokenThreadPool")
        assert logger.manager is logging.root.manager
        assert logger.isEnabledFor(logging.WARNING)


@pytest.mark.slow
@pytest.mark.filterwarnings(fleet.DASK_WARNING)
def test_verify_many_continues_after_losing_cluster(tmp_path: Path) -> None:
    """If the cluster is lost during the run, local workers finish it, with one warning."""
    pytest.importorskip("distributed")
    files = evidence_files.write(tmp_path)
    line = json.dumps({"evidence": files.evidence.read_bytes().hex()}).encode() + b"\n"
    with ExitStack() as stack:
        with fleet.cluster(1) as client:
            words = ["verify-many", "-", *files.trusted, "--scheduler", client.scheduler.address]
            program = subprocess.Popen(
                [sys.executable, "-m", "attestkit", *words],
                env=environment(),
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            process = stack.enter_context(program)
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line)
            ready, _, _ = select.select([process.stdout], [], [], LONG)
            assert ready, "no result"
            assert b'"accepted"' in process.stdout.readline()
        out, captured = process.communicate(line * 20, timeout=LONG)
    assert process.returncode == 0
    assert out.count(b'"accepted"') == out.count(b"\n") == 20
    assert captured.startswith(b"attestkit: executor failed (")
    assert captured.count(b"\n") == 1
