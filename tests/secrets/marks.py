"""Secrets that are known to a test, and every form in which a byte of theirs could lie about.

What is searched for is the middle half of a secret: a copy of which the ends were written over, or
that a line end cuts, counts as well.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_BLANK = re.compile(rb"(?:\s|\\n|\\r|\\/)+")


def mark(label: str) -> bytes:
    """Return 32 bytes that no other label and no accident gives: a valid scalar of each curve."""
    return b"\x11" + hashlib.sha256(f"attestkit secret {label}".encode()).digest()[1:]


class Found(NamedTuple):
    """A form of a secret that was found, and how often."""

    secret: str
    form: str
    times: int


def forms(secret: bytes) -> dict[str, bytes]:
    """Return what to search for, by the name of the form: of bytes, and of what is text already."""
    middle = secret[len(secret) // 4 : len(secret) - len(secret) // 4]
    number = int.from_bytes(secret, "big")
    digits = [(number >> 30 * place) & (1 << 30) - 1 for place in range(1, len(secret) * 8 // 30)]
    found = {
        "raw": middle,
        "reversed": middle[::-1],  # also limbs of any size, the least first
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
    for shift in range(3):  # the border of three bytes can lie anywhere
        whole = base64.b64encode(bytes(shift) + middle)
        text = whole[4 if shift else 0 :][: len(middle) // 3 * 4 - 4]
        found[f"base64 {shift}"] = text
        found[f"base64url {shift}"] = text.translate(bytes.maketrans(b"+/", b"-_"))
    return found


def search(place: bytes, secrets: Mapping[str, bytes]) -> list[Found]:
    """Return what of the secrets lies in a place, text of broken lines included."""
    joined = _BLANK.sub(b"", place) if len(place) < 1 << 24 else place
    return list(_search(place, joined, secrets))


def _search(place: bytes, joined: bytes, secrets: Mapping[str, bytes]) -> Iterator[Found]:
    for name, secret in secrets.items():
        seen = set()
        for form, needle in forms(secret).items():
            if needle in seen:
                continue
            seen.add(needle)
            blank = _BLANK.sub(b"", needle) if form == "list" else needle
            if count := max(place.count(needle), joined.count(blank)):
                yield Found(name, form, count)
