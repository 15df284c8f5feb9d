"""Marked secrets, and the search for every encoding in which a part of them could be stored.

The search uses the middle half of a secret, so that a partly overwritten or line-wrapped copy is
found as well.
"""

import base64
import hashlib
import string
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

_BINARY = {"raw", "reversed", "limbs of 4", "limbs of 8", "digits of a Python int"}


def mark(label: str) -> bytes:
    """Return 32 bytes unique to the label: a valid scalar of each curve."""
    return b"\x11" + hashlib.sha256(f"attestkit secret {label}".encode()).digest()[1:]


class Found(NamedTuple):
    """An encoding of a secret that was found, and its number of occurrences."""

    secret: str
    form: str
    times: int


@cache
def forms(secret: bytes) -> dict[str, bytes]:
    """Return the byte strings to search for, by the name of the encoding."""
    middle = secret[len(secret) // 4 : len(secret) - len(secret) // 4]
    number = int.from_bytes(secret, "big")
    digits = [
        (number >> 30 * content) & (1 << 30) - 1 for content in range(1, len(secret) * 8 // 30)
    ]
    found = {
        "raw": middle,
        "reversed": middle[::-1],  # also little-endian limbs of any size
        "limbs of 4": b"".join(middle[i : i + 4][::-1] for i in range(0, len(middle), 4)),
        "limbs of 8": b"".join(middle[i : i + 8][::-1] for i in range(0, len(middle), 8)),
        "digits of a Python int": b"".join(digit.to_bytes(4, "little") for digit in digits[1:5]),
        "hex": middle.hex().encode(),
        "HEX": middle.hex().upper().encode(),
        "decimal": str(number).encode(),
        "decimal, little-endian": str(int.from_bytes(secret, "little")).encode(),
        "repr": repr(middle)[2:-1].encode(),
        "list": ", ".join(map(str, middle)).encode(),
        "escapes": "".join(f"\\x{byte:02x}" for byte in middle).encode(),
        "percent": "".join(f"%{byte:02x}" for byte in middle).encode(),
        "colons": ":".join(f"{byte:02x}" for byte in middle).encode(),
    }
    for shift in range(3):  # a copy may start at any of three alignments
        whole = base64.b64encode(bytes(shift) + middle)
        text = whole[4 if shift else 0 :][: len(middle) // 3 * 4 - 4]
        found[f"base64 {shift}"] = text
        found[f"base64url {shift}"] = text.translate(bytes.maketrans(b"+/", b"-_"))
    return found


def search(content: bytes, secrets: Mapping[str, bytes]) -> list[Found]:
    """Return the secrets found in a byte string, including text wrapped into lines."""
    return list(_search(content, _join(content), secrets))


def _join(content: bytes) -> bytes:
    """Return the content without whitespace, also escaped, and without escapes of a slash."""
    content = content.replace(b"\\n", b"").replace(b"\\r", b"").replace(b"\\/", b"/")
    return content.translate(None, string.whitespace.encode())


def _search(content: bytes, joined: bytes, secrets: Mapping[str, bytes]) -> Iterator[Found]:
    for name, secret in secrets.items():
        seen = set()
        for form, needle in forms(secret).items():
            if needle in seen:
                continue
            seen.add(needle)
            count = 0
            if form not in _BINARY:
                count = joined.count(needle.replace(b" ", b"") if form == "list" else needle)
            # Joined text has all others that the content has: no search of megabytes twice.
            if form in _BINARY or b"\\" in needle or needle.startswith((b"n", b"r")):
                count = max(count, content.count(needle))
            if count:
                yield Found(name, form, count)
