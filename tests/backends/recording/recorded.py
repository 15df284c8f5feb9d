"""How the tests of recordings record, with nothing of this machine in what they record."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.backends.base import Backend
from attestkit.backends.recording import Recording

NOW: Final = 1_764_000_000
ASKED: Final = bytes(range(64))


def leave_the_machine_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no host share files, but for `tmp_path`/shared, and no recording named."""
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path / "shared"))
    monkeypatch.delenv("ATTESTKIT_RECORDING", raising=False)


def record(path: Path, of: str | Backend, **options: object) -> Recording:
    """Return a backend that is recorded, with its header of one time."""
    return Recording(path, of=of, options=options or None, now=lambda: NOW)


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a recording."""
    return [json.loads(line) for line in path.read_text().splitlines()]
