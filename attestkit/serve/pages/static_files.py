"""Static files of the dashboard, from the package."""

from functools import cache
from typing import Final, NamedTuple

ASSETS: Final = {
    "dashboard.css": b"text/css; charset=utf-8",
    "dashboard.js": b"text/javascript; charset=utf-8",
    "icon.svg": b"image/svg+xml",
}
"""Names of the static files, and their content types."""


class Asset(NamedTuple):
    """A static file; its URL contains `digest`, so that browsers may cache it forever."""

    content: bytes
    digest: str


@cache
def get_asset(name: str) -> Asset:
    """Return a static file, one of ASSETS."""
    from hashlib import sha256
    from importlib.resources import files

    content = (files("attestkit.serve.pages") / "templates" / name).read_bytes()
    return Asset(content, sha256(content).hexdigest()[:16])


def asset_path(name: str) -> str:
    """Return the cacheable URL of a static file."""
    return f"/assets/{name}?v={get_asset(name).digest}"
