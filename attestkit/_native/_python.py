"""The native core in pure Python: the fallback without the C core, and the reference in tests.

This module has the functions of agent_json.c, hex.c, json_depth.c, evidence_object.c and
event_object.c, and collects those of the modules `_python_*`. What it leaves is decoded by
`event_log.agent_json`, `attestation.wire` and `EventLog.from_wire`.
"""

import binascii
import re
from collections.abc import Callable
from typing import Literal

from attestkit._native._pck_fields import PckCertificateFields
from attestkit._native._python_cbor import cbor_check
from attestkit._native._python_columns import Column, quote_rows
from attestkit._native._python_keccak import keccak
from attestkit._native._python_log import (
    ccel_walk,
    replay,
    replay_many,
    sha384,
    sha384_many,
    tpm_walk,
)
from attestkit._native._python_pck import read_pck_certificate
from attestkit._native._python_quote import (
    QuoteBase,
    body_getter,
    quote_layout,
    quote_parsers,
)

__all__ = [
    "Column",
    "PckCertificateFields",
    "QuoteBase",
    "agent_json_walk",
    "body_getter",
    "cbor_check",
    "ccel_walk",
    "cpuid",
    "event_maker",
    "evidence_decoders",
    "hexlify",
    "json_depth",
    "keccak",
    "quote_layout",
    "quote_parsers",
    "quote_rows",
    "read_pck_certificate",
    "replay",
    "replay_many",
    "sha384",
    "sha384_many",
    "tpm_walk",
    "unhex",
]

_Leave = Callable[[object], None]


def agent_json_walk(data: bytes | str) -> Literal["left"]:
    """Return "left": every text is left to `event_log.agent_json`."""
    del data
    return "left"


def unhex(text: bytes | str) -> bytes | None:
    """Return the bytes of hex digits in upper or lower case, or None if the text is not hex."""
    try:
        return binascii.unhexlify(text)
    except ValueError:
        return None


def hexlify(data: bytes) -> bytes:
    """Return the bytes in hex, in lower case."""
    return binascii.hexlify(data)


# CPUID in pure Python: not available.


def cpuid(leaf: int, subleaf: int) -> None:
    """Return None: pure Python cannot execute CPUID."""


# The nesting depth of JSON brackets (json_depth.c) in pure Python.

_MARKS = re.compile(rb'"[^"]*"?|[\[{\]}]')  # an unterminated string extends to the end


def json_depth(text: bytes, most: int) -> int:
    """Return the offset of the first bracket nested deeper than `most` levels, or -1."""
    if text.count(b"[") + text.count(b"{") <= most:
        return -1
    # Remove escapes, so that every remaining quotation mark starts or ends a string.
    text = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    depth = 0
    for mark in _MARKS.finditer(text):
        first = text[mark.start()]
        if first in b"[{":
            depth += 1
            if depth > most:
                return mark.start()
        elif first != 0x22:  # a quotation mark
            depth -= 1
    return -1


def evidence_decoders(*_: type[tuple[object, ...]]) -> tuple[_Leave, _Leave, _Leave]:
    """Return functions that return None, which leaves evidence to the Python decoders."""
    return _leave, _leave, _leave


def event_maker(_: type[tuple[object, ...]], /) -> _Leave:
    """Return a function that returns None, which leaves events to `EventLog.from_wire`."""
    return _leave


def _leave(_: object) -> None:
    """Return None."""
