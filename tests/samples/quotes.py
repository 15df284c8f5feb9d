"""Quotes for tests: the real samples, and well-formed ones without valid signatures."""

import json
from hashlib import sha256
from itertools import accumulate
from struct import pack
from typing import Any

from tests.vectors import HAVE_SHARED, data, load

VECTORS: list[dict[str, Any]] = load("quotes.json").get("quotes", [])
INTEL = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
PATTERN = bytes(i % 251 for i in range(1024))

# Body sizes of version 5 by body type.
BODY_SIZES = {1: 384, 2: 584, 3: 648}


def sample(path: str) -> bytes:
    """Return the quote in the shared file `path`, which may be raw, hex or JSON with hex."""
    content = data(path)
    if path.endswith(".json"):
        return bytes.fromhex(json.loads(content)["quote"])
    if path.endswith((".hex", ".txt")):
        return bytes.fromhex(content.decode().strip().removeprefix("0x"))
    return content


def samples() -> list[bytes]:
    """Return all well-formed real quotes; without the samples, an empty list."""
    if not HAVE_SHARED:
        return []
    return [sample(v["path"]) for v in VECTORS if v["trailing_all_zero"]]


def made_quote(
    version: int = 4,
    tee_type: int = 0x81,
    body_type: int = 0,
    auth: bytes = bytes(range(32)),
    certification: tuple[int, bytes] = (5, b""),
    *,
    report: bytes = PATTERN[7:327],
    key: bytes = PATTERN[100:164],
) -> bytes:
    """Return a well-formed quote with invalid signatures.

    `body_type` applies to version 5; in older versions the TEE type determines the body.
    """
    size = BODY_SIZES[body_type or (2 if tee_type else 1)]
    header = pack("<HHI4x16s20s", version, 2, tee_type, INTEL, PATTERN[:20])
    descriptor = pack("<HI", body_type, size) if version == 5 else b""
    binding = sha256(key + auth).digest() + bytes(32)
    kind, content = certification
    enclave = report + binding + PATTERN[64:128] + pack("<H", len(auth)) + auth
    enclave += pack("<HI", kind, len(content)) + content
    if version > 3:
        enclave = pack("<HI", 6, len(enclave)) + enclave
    signature = PATTERN[200:264] + key + enclave
    return header + descriptor + PATTERN[1 : 1 + size] + pack("<I", len(signature)) + signature


def made_quotes() -> list[bytes]:
    """Return a generated quote of every version, body and size of authentication data."""
    return [
        made_quote(3, 0, 0, certification=(1, bytes(34))),
        made_quote(4, 0, 0, auth=b""),
        made_quote(4, 0x81, 0, auth=bytes(200), certification=(2, bytes(276))),
        made_quote(5, 0, 1, auth=bytes(55)),
        made_quote(5, 0x81, 2, auth=bytes(56), certification=(3, bytes(404))),
        made_quote(5, 0x81, 3, auth=b"", certification=(4, b"\x30\x00")),
    ]


def starts_of(quotes: list[bytes]) -> list[int]:
    """Return the offset of each quote in their concatenation."""
    return list(accumulate(map(len, quotes[:-1]), initial=0)) if quotes else []
