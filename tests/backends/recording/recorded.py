"""Helpers that record without influence of this machine."""

import json
from pathlib import Path
from typing import Any, Final

from attestkit.backends.base import Backend
from attestkit.backends.recording import Recording

NOW: Final = 1_764_000_000
REPORT_DATA: Final = bytes(range(64))


def record(path: Path, of: str | Backend, **options: object) -> Recording:
    """Return a recording backend, with a fixed time in its header."""
    return Recording(path, of=of, options=options or None, now=lambda: NOW)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a recording."""
    return [json.loads(line) for line in path.read_text().splitlines()]
