"""Every quote and every collateral in the shared data, whatever file contains them."""

import base64
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from struct import unpack_from
from typing import Final

from attestkit.collateral import Collateral
from tests.vectors import SHARED

DATA: Final = SHARED / "data"
_FOLDERS: Final = ("quotes", "dstack", "services", "vtpm/azure")
_HEX: Final = re.compile(rb"(?:[0-9a-fA-F]{2}){600,}")
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]{800,}={0,2}")
_HEADER: Final = re.compile(  # version, key type, TEE type, two SVNs, Intel's vendor id
    rb"[\x03-\x05]\0\x02\0[\0\x81]\0\0\0.{4}"
    + re.escape(bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")),
    re.DOTALL,
)


@cache
def real_quotes() -> dict[bytes, str]:
    """Return each quote with a file that has it, without zero padding."""
    found: dict[bytes, str] = {}
    for path in _files():
        for content in _decoded(path.read_bytes()):
            for match in _HEADER.finditer(content):
                quote = _cut(content[match.start() :])
                found.setdefault(quote, str(path.relative_to(DATA)))
    found.pop(b"", None)
    return found


@cache
def real_collateral() -> dict[str, Collateral]:
    """Return each collateral by its file."""
    paths = (path for path in _files() if "collateral" in path.name)
    return {str(path.relative_to(DATA)): Collateral.load(path) for path in paths}


def _files() -> list[Path]:
    folders = (DATA / folder for folder in _FOLDERS)
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def _decoded(content: bytes) -> Iterator[bytes]:
    """Yield a file's content, and what its hex and base64 strings contain."""
    yield content
    for match in _HEX.finditer(content):
        yield bytes.fromhex(match[0].decode())
    for match in _BASE64.finditer(content):
        text = match[0].rstrip(b"=")
        yield base64.b64decode(text[: len(text) // 4 * 4])  # zero padding follows a quote


def _cut(content: bytes) -> bytes:
    """Return the quote that `content` begins with; no bytes if it is truncated."""
    version, tee_type = content[0], content[4]
    if version == 5:
        size = 54 + unpack_from("<I", content, 50)[0]
    else:
        size = 48 + (584 if tee_type else 384)
    if len(content) < size + 4:
        return b""
    end = size + 4 + unpack_from("<I", content, size)[0]
    return content[:end] if len(content) >= end else b""
