"""Samples of manifests with what is expected of them, out of the shared data."""

import json
from datetime import datetime
from typing import Any, Final

from attestkit._crypto.pem import split_pem
from tests.vectors import SHARED, needs_shared

__all__ = ["CASES", "EXPECTED", "SIGNED", "at", "needs_shared", "read", "rim_root"]

_GPU: Final = SHARED / "data" / "gpu"


def _load(name: str, otherwise: Any) -> Any:
    path = _GPU / name
    return json.loads(path.read_text()) if path.is_file() else otherwise


EXPECTED: Final[dict[str, Any]] = _load(
    "expected.json", {"rims": {}, "malformed_rims": {}, "comparisons": {}, "reports": {}}
)
CASES: Final[list[dict[str, Any]]] = _load("fabricated/cases.json", [])
SIGNED: Final = sorted(
    str(path.relative_to(_GPU))
    for path in _GPU.rglob("*.xml")
    if b"<ds:Signature" in path.read_bytes()
)
"""Names of all files with a signature."""


def read(name: str) -> bytes:
    """Return the bytes of a sample."""
    return (_GPU / name).read_bytes()


def rim_root(name: str = "roots/rim-root.pem") -> bytes:
    """Return a root certificate in DER."""
    return split_pem(read(name).decode())[0]


def at(time: str) -> datetime:
    """Return a time of the expected values."""
    return datetime.fromisoformat(time.replace("Z", "+00:00"))
