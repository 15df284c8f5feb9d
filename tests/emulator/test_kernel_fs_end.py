"""What ends the mount of the emulator wakes libfuse, and does not interrupt what it does then."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attestkit.emulator import fuse_mount
from tests.untyped import untyped


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the end did, in its order; its signal has come already."""
    monkeypatch.setattr(signal, "sigwait", lambda _: signal.SIGTERM)
    monkeypatch.setattr(fuse_mount, "_AGAIN", 0.0)
    return []


def end(told: list[str], place: Path) -> Any:
    """Return the end of a mount that only notes what it is told."""
    library = SimpleNamespace(fuse_exit=lambda _: told.append("exit"))
    return fuse_mount._End(untyped(SimpleNamespace(_libfuse=library)), place, {signal.SIGTERM})


@pytest.mark.parametrize("calls", [["exit", "ask"], ["exit", "ask", "SIGUSR1"]])
def test_a_request_wakes_libfuse(
    calls: list[str], told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal could interrupt its wait for the unmount: one is sent where no request arrives."""
    ending = end(told, tmp_path)

    def ask(place: Path) -> None:
        assert place == tmp_path
        told.append("ask")
        if len(calls) == 2:
            ending.done()
        raise OSError  # as of a mount that is gone

    def kill(_: int, number: signal.Signals) -> None:
        told.append(number.name)
        ending.done()

    monkeypatch.setattr(os, "statvfs", ask)
    monkeypatch.setattr(signal, "pthread_kill", kill)
    ending._watch()
    assert told == calls


def test_what_is_over_is_left_alone(told: list[str], tmp_path: Path) -> None:
    """Somebody else has unmounted it: libfuse may have forgotten it, and the folder is no mount."""
    ending = end(told, tmp_path)
    ending.done()
    ending._watch()
    assert not told
