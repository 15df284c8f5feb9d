"""Power-off by a signal to systemd, which is never sent in these tests."""

import os
import signal
from pathlib import Path

import pytest

from attestkit._system.process_hardening import power_off
from attestkit.errors import BackendError
from tests.raising import raises


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record signals instead of sending them."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append((pid, number)))
    return found


def test_power_off_signals_systemd(sent: list[tuple[int, int]], tmp_path: Path) -> None:
    """The first process gets SIGRTMIN+4, which starts poweroff.target."""
    power_off(tmp_path)
    assert sent == [(1, signal.SIGRTMIN + 4)]


def test_power_off_without_systemd_fails(
    sent: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container, whose first process may be the server itself, nothing is signalled."""
    with raises(BackendError, "missing"):
        power_off(tmp_path / "missing")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with raises(BackendError, "missing"):
        power_off(tmp_path)
    assert not sent


def test_power_off_without_permission_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who may not signal systemd gets an error."""

    def refuse(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", refuse)
    with raises(BackendError, "permission_denied"):
        power_off(tmp_path)
