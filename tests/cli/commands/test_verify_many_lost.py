"""`attestkit verify-many --scheduler`: it says when others take over from a lost cluster."""

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
from tests import fleet as show
from tests.cli import evidence_files
from tests.serve.server import environment

LONG = 300  # seconds


@contextmanager
def lost(_address: str) -> Iterator[Executor]:
    """Be a cluster that takes no work, and whose library complains of it at length."""

    def fail() -> None:
        raise OSError("no thread")

    logger = logging.getLogger("distributed.of_a_test")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        logger.critical("a word of the library's")
        logging.getLogger("attestkit.other").critical("nor one of others")
        with ThreadPoolExecutor(1, initializer=fail) as pool:
            yield pool
    finally:
        logger.removeHandler(handler)


def test_a_cluster_that_is_lost_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line on stderr with the cause, no other word, and logging is afterwards as before."""
    files = evidence_files.write(tmp_path)
    line = json.dumps({"evidence": files.evidence.read_bytes().hex()}).encode() + b"\n"
    path = files.put("lines", line * 40)
    monkeypatch.setattr(executors, "_cluster", lost)
    logger = logging.getLogger("attestkit.verifier")
    for before in (logging.NOTSET, logging.CRITICAL):  # who has turned logging off hears nothing
        logging.disable(before)
        try:
            words = ["verify-many", str(path), *files.trusted, "--scheduler", "tcp://127.0.0.1:1"]
            assert main(words) == 0
            assert logging.root.manager.disable == before
        finally:
            logging.disable(logging.NOTSET)
        told = capsys.readouterr()
        assert told.out.count("\n") == 40
        if before:
            assert told.err == ""
        else:
            assert told.err.count("\n") == 1
            assert told.err.startswith("attestkit: the executor gave up (BrokenThreadPool")
        assert logger.manager is logging.root.manager
        assert logger.isEnabledFor(logging.WARNING)


@pytest.mark.slow
@pytest.mark.filterwarnings(show.DASKS_OWN)
def test_a_cluster_that_goes_in_the_middle(tmp_path: Path) -> None:
    """Scheduler and workers are gone: the rest is judged here, and a line on stderr says so."""
    pytest.importorskip("distributed")
    files = evidence_files.write(tmp_path)
    line = json.dumps({"evidence": files.evidence.read_bytes().hex()}).encode() + b"\n"
    with ExitStack() as stack:
        with show.cluster(1) as client:
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
        out, told = process.communicate(line * 20, timeout=LONG)
    assert process.returncode == 0
    assert out.count(b'"accepted"') == out.count(b"\n") == 20
    assert told.startswith(b"attestkit: the executor gave up (")
    assert told.count(b"\n") == 1
