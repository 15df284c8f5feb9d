"""Where the shared samples and vectors are, and how a test says that it needs them.

They are present in development and in continuous integration, not in a release; tests that need
them skip with that reason elsewhere.
"""

import json
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
HAVE_SHARED = (SHARED / "vectors").is_dir()
needs_shared = pytest.mark.skipif(not HAVE_SHARED, reason="the shared vectors are not here")


def load(name: str) -> Any:
    """Return the JSON of `vectors/<name>`, or an empty object where the vectors are missing."""
    return json.loads((SHARED / "vectors" / name).read_text()) if HAVE_SHARED else {}


def data(name: str) -> bytes:
    """Return the bytes of `data/<name>`, or none where the samples are missing."""
    return (SHARED / "data" / name).read_bytes() if HAVE_SHARED else b""
