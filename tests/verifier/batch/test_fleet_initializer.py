"""Tests of replacement worker processes: they run the initializer of the given pool."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from attestkit.errors import FormatError
from attestkit.verifier import AttestationResult, Item, Verifier
from tests.verifier import parcels
from tests.verifier.parcels import NONCE, NOW, PKI

RAW = parcels.evidence().to_bytes()
FATAL_EVIDENCE = b"\4\0 ends the process that verifies it first"
SPAWN = get_context("spawn")
INITIALIZED: list[str] = []  # in this process


def initialize(folder: Path, state: str) -> None:
    """Initialize the process, and create a file named by its PID."""
    INITIALIZED.extend([state, str(folder)])
    (folder / str(os.getpid())).touch()


def fail_initializer(folder: Path) -> None:
    """Create a file named by the PID, and exit."""
    (folder / str(os.getpid())).touch()
    os._exit(1)


class InitializedVerifier(Verifier):
    """A verifier that requires an initialized process."""

    def verify(self, evidence: Any, **options: Any) -> AttestationResult:
        """Verify; kill the first process on FATAL_EVIDENCE."""
        state, folder = INITIALIZED
        assert state == "ready"
        if evidence == FATAL_EVIDENCE and len(list(Path(folder).iterdir())) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().verify(evidence, **options)


def test_replacement_processes_run_initializer(tmp_path: Path) -> None:
    """Processes that retry a task, and those that continue, run the pool's initializer."""
    evidence = [Item(RAW, NONCE)] * 20
    evidence[3] = Item(FATAL_EVIDENCE, None)
    verifier = InitializedVerifier(PKI.root_der, parcels.collateral())
    with ProcessPoolExecutor(1, SPAWN, initialize, (tmp_path, "ready")) as pool:
        found = verifier.verify_many(evidence, pool, now=NOW)
    assert isinstance(found.pop(3), FormatError)
    assert all(isinstance(each, AttestationResult) for each in found)
    assert 2 <= len(list(tmp_path.iterdir())) <= 4


@pytest.mark.parametrize("stream", [pytest.param(False, marks=pytest.mark.slow), True])
def test_initializer_that_exits_is_retried_bounded_times(tmp_path: Path, *, stream: bool) -> None:
    """All items are rejected, and the number of started processes is bounded."""
    evidence = [Item(RAW, NONCE)] * 800
    verifier = Verifier(PKI.root_der, parcels.collateral())
    with ProcessPoolExecutor(1, SPAWN, fail_initializer, (tmp_path,)) as pool:
        if stream:
            found = [each for _, each in verifier.verify_stream(iter(evidence), pool, now=NOW)]
        else:
            found = verifier.verify_many(evidence, pool, now=NOW)
    assert len(found) == 800
    assert {getattr(each, "reason", "") for each in found} == {"internal"}
    assert len(list(tmp_path.iterdir())) <= 8
