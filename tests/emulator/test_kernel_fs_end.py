"""End of the emulator's mount: libfuse is woken without an interrupted unmount."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attestkit.emulator import fuse_mount
from tests.untyped import untyped


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of recorded steps; the end signal is already pending."""
    monkeypatch.setattr(signal, "sigwait", lambda _: signal.SIGTERM)
    monkeypatch.setattr(fuse_mount, "_WAKE_INTERVAL", 0.0)
    return []


def make_unmounter(steps: list[str], path: Path) -> Any:
    """Return an unmounter that records its steps."""
    library = SimpleNamespace(fuse_exit=lambda _: steps.append("exit"))
    return fuse_mount._Unmounter(untyped(SimpleNamespace(_libfuse=library)), path, {signal.SIGTERM})


@pytest.mark.parametrize("calls", [["exit", "request"], ["exit", "request", "SIGUSR1"]])
def test_unmounter_wakes_libfuse_with_a_request(
    calls: list[str], steps: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal is sent only if no request arrives, since it could interrupt the unmount."""
    ending = make_unmounter(steps, tmp_path)

    def request(path: Path) -> None:
        assert path == tmp_path
        steps.append("request")
        if len(calls) == 2:
            ending.done()
        raise OSError  # the mount is gone

    def kill(_: int, number: signal.Signals) -> None:
        steps.append(number.name)
        ending.done()

    monkeypatch.setattr(os, "statvfs", request)
    monkeypatch.setattr(signal, "pthread_kill", kill)
    ending._watch()
    assert steps == calls


def test_unmounter_leaves_an_ended_mount_alone(steps: list[str], tmp_path: Path) -> None:
    """After an unmount by another process, the libfuse handle may be freed."""
    ending = make_unmounter(steps, tmp_path)
    ending.done()
    ending._watch()
    assert not steps
