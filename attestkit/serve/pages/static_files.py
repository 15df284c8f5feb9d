"""The files that the dashboard loads, from the package."""

from functools import cache
from typing import Final, NamedTuple

__all__ = ["ASSETS", "Asset", "asset", "asset_path"]

ASSETS: Final = {
    "dashboard.css": b"text/css; charset=utf-8",
    "dashboard.js": b"text/javascript; charset=utf-8",
    "icon.svg": b"image/svg+xml",
}
"""The files that the page loads, and their types."""


class Asset(NamedTuple):
    """A file that the page loads; `digest` in its address lets browsers keep it for good."""

    content: bytes
    digest: str


@cache
def asset(name: str) -> Asset:
    """Return a file that the page loads, one of ASSETS."""
    from hashlib import sha256
    from importlib.resources import files

    content = (files("attestkit.serve.pages") / "templates" / name).read_bytes()
    return Asset(content, sha256(content).hexdigest()[:16])


def asset_path(name: str) -> str:
    """Return where a browser finds such a file, and may keep it for good."""
    return f"/assets/{name}?v={asset(name).digest}"
