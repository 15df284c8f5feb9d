"""Detect pieces of the shared samples, which are not committed."""

import base64
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Final

from tests.samples.pck_certificates import made_certificates
from tests.samples.quotes import made_quotes
from tests.vectors import HAVE_SHARED, SHARED

__all__ = ["has_borrowed_piece"]

_BLOCK: Final = 24
"""Bytes compared: longer than the constants and keywords of a format."""

_STEPS: Final = 12
"""Distinct differences of adjacent bytes in a block of data; fill and counted-up bytes have few."""

_SOURCES: Final = ("quotes", "ccel", "dstack")
_PEM: Final = re.compile(rb"-----BEGIN [^-]+-----([^-]*)-----END")
_HEX: Final = re.compile(rb"[0-9a-fA-F]{%d,}" % (2 * _BLOCK))


def has_borrowed_piece(data: bytes) -> bool:
    """Return whether the data contains binary data of a sample: raw, in PEM or in hex."""
    blocks = _blocks_of_samples()
    return any(
        form[at : at + _BLOCK] in blocks
        for form in _binary_forms(data)
        for at in range(len(form) - _BLOCK + 1)
    )


def _binary_forms(data: bytes) -> Iterator[bytes]:
    yield data
    for part in _PEM.finditer(data):
        text = re.sub(rb"\\n|[^A-Za-z0-9+/]", b"", part[1])  # the former is a line's end in JSON
        yield base64.b64decode(text[: len(text) // 4 * 4])
    for part in _HEX.finditer(data):
        for digits in (part[0], part[0][1:]):  # a digit may stand before them
            yield bytes.fromhex(digits[: len(digits) // 2 * 2].decode())


@cache
def _blocks_of_samples() -> frozenset[bytes]:
    """Return the samples' data in adjacent blocks, one of which any copied piece contains."""
    if not HAVE_SHARED:
        return frozenset()
    files = [
        path
        for source in _SOURCES
        for path in (SHARED / "data" / source).rglob("*")
        if path.is_file()
    ]
    forms = [form for path in files for form in _binary_forms(path.read_bytes())]
    blocks = (form[at : at + _BLOCK] for form in forms for at in range(0, len(form), _BLOCK))
    made = [*made_quotes(), *made_certificates()]  # have the constants of these formats
    constants = {data[at : at + _BLOCK] for data in made for at in range(len(data))}
    return frozenset(filter(_is_data, blocks)) - constants


def _is_data(block: bytes) -> bool:
    return not block.isascii() and len({b - a for a, b in pairwise(block)}) >= _STEPS
