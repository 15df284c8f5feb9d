"""Processes that take over begin as those of the pool that was given: with its initializer."""

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
FATAL = b"\4\0 ends the process that judges it first"
SPAWN = get_context("spawn")
SET_UP: list[str] = []  # in this process


def set_up(folder: Path, word: str) -> None:
    """Set a process up, and leave a mark of it."""
    SET_UP.extend([word, str(folder)])
    (folder / str(os.getpid())).touch()


def fail(folder: Path) -> None:
    """Leave a mark, and begin no process."""
    (folder / str(os.getpid())).touch()
    os._exit(1)


class Particular(Verifier):
    """A verifier that judges nothing in a process which is not set up."""

    def verify(self, evidence: Any, **more: Any) -> AttestationResult:
        """Judge, die, or fail."""
        word, folder = SET_UP
        assert word == "ready"
        if evidence == FATAL and len(list(Path(folder).iterdir())) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().verify(evidence, **more)


def test_processes_that_take_over_are_set_up(tmp_path: Path) -> None:
    """Those that judge a dead worker's task, and those that go on with the rest."""
    evidence = [Item(RAW, NONCE)] * 20
    evidence[3] = Item(FATAL, None)
    judge = Particular(PKI.root_der, parcels.collateral())
    with ProcessPoolExecutor(1, SPAWN, set_up, (tmp_path, "ready")) as pool:
        found = judge.verify_many(evidence, pool, now=NOW)
    assert isinstance(found.pop(3), FormatError)
    assert all(isinstance(each, AttestationResult) for each in found)
    assert 2 <= len(list(tmp_path.iterdir())) <= 4


@pytest.mark.parametrize("stream", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_initializer_that_ends_each_process(tmp_path: Path, *, stream: bool) -> None:
    """All is refused, and a bounded number of processes begins, however much evidence there is."""
    evidence = [Item(RAW, NONCE)] * 800
    judge = Verifier(PKI.root_der, parcels.collateral())
    with ProcessPoolExecutor(1, SPAWN, fail, (tmp_path,)) as pool:
        if stream:
            found = [each for _, each in judge.verify_stream(iter(evidence), pool, now=NOW)]
        else:
            found = judge.verify_many(evidence, pool, now=NOW)
    assert len(found) == 800
    assert {getattr(each, "reason", "") for each in found} == {"internal"}
    assert len(list(tmp_path.iterdir())) <= 8
