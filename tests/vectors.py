"""Access to the shared samples and vectors, and a mark for tests that need them.

They exist in development and in continuous integration, not in a release; elsewhere the tests
skip with this reason.
"""

import json
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
HAVE_SHARED = (SHARED / "vectors").is_dir()
needs_shared = pytest.mark.skipif(not HAVE_SHARED, reason="the shared vectors are missing")


def load(name: str) -> Any:
    """Return the JSON of `vectors/<name>`, or an empty object without the vectors."""
    return json.loads((SHARED / "vectors" / name).read_text()) if HAVE_SHARED else {}


def data(name: str) -> bytes:
    """Return the bytes of `data/<name>`, or no bytes without the samples."""
    return (SHARED / "data" / name).read_bytes() if HAVE_SHARED else b""


def path_of(vector: dict[str, Any]) -> str:
    """Return the path of a vector's sample, as an id for pytest."""
    return str(vector["path"])


def td_fields(body: dict[str, str]) -> dict[str, bytes]:
    """Return the fields of a TD body in a vector, which has upstream's name of MRTD."""
    renamed = {"mrtd" if name == "mr_td" else name: value for name, value in body.items()}
    return {name: bytes.fromhex(value) for name, value in renamed.items()}
