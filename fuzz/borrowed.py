"""Whether an input has a piece of test data whose licence asks for more than its name.

Fuzzers start from these quotes too, where they are present. What they make of them is not kept in
the repository's corpora: the makers of those leave out every input of which this says so.
"""

import base64
import re
from collections.abc import Iterator
from functools import cache
from typing import Final

from fuzz.parser_reports import quote_samples
from tests.vectors import HAVE_SHARED, SHARED

__all__ = ["PIECE", "has_borrowed_piece"]

PIECE: Final = 40
"""Bytes that are a piece of something; shorter ones are of its format."""

_SOURCES: Final = ("quotes/dcap-qvl", "quotes/intel-qvl")
_VALUES: Final = 10  # different bytes that a piece has, or it is fill
_PEM: Final = re.compile(rb"-----BEGIN [^-]+-----([^-]*)-----END")
_HEX: Final = re.compile(rb"(?:[0-9a-fA-F]{2}){%d,}" % PIECE)


def has_borrowed_piece(data: bytes) -> bool:
    """Return whether a piece of the data, as it is or in PEM or hex, is of those sources alone."""
    borrowed = _borrowed()
    return bool(borrowed) and any(piece in borrowed for piece in _pieces(data))


def _pieces(data: bytes) -> Iterator[bytes]:
    forms = [data]
    for part in _PEM.finditer(data):
        text = re.sub(rb"\\n|[^A-Za-z0-9+/]", b"", part[1])  # the former is a line's end in JSON
        forms.append(base64.b64decode(text[: len(text) // 4 * 4]))
    forms += [bytes.fromhex(part[0].decode()) for part in _HEX.finditer(data)]
    for form in forms:
        for at in range(len(form) - PIECE + 1):
            yield form[at : at + PIECE]


@cache
def _borrowed() -> frozenset[bytes]:
    """Return the pieces of these sources that neither another one nor the simulator has."""
    if not HAVE_SHARED:
        return frozenset()
    files = [path for path in (SHARED / "data").rglob("*") if path.is_file()]
    folders = [SHARED / "data" / name for name in _SOURCES]
    theirs = {path for path in files if path.parent in folders}
    found = {piece for path in theirs for piece in _pieces(path.read_bytes())}
    for path in set(files) - theirs:
        found.difference_update(_pieces(path.read_bytes()))
    for made in quote_samples():
        found.difference_update(_pieces(made))
    return frozenset(piece for piece in found if len(set(piece)) >= _VALUES)
