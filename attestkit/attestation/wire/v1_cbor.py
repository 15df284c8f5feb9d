"""Evidence as one document in CBOR: what attestkit wrote before it had CMW, and CMW records hold.

It is the tree of wire version 1 with every byte field a CBOR byte string, in deterministic form
(RFC 8949, 4.2.1: shortest heads, definite lengths, keys in the order of their bytes), behind the
tag 55799 that marks CBOR (RFC 8949, 3.4.6). Its bytes, d9 d9 f7, are the mark by which evidence in
CBOR is recognised: no other encoding begins with d9 d9. Reading insists on the shortest heads and
definite lengths, and takes keys in any order.
"""

from functools import lru_cache

from attestkit._formats.cbor import CborReader
from attestkit.attestation.wire import v1_document
from attestkit.attestation.wire.evidence_parts import Evidence
from attestkit.errors import FormatError, UsageError

__all__ = ["FIRST_BYTES", "decode", "dump", "encode"]

FIRST_BYTES = frozenset([0xD9])
_MARK = bytes.fromhex("d9d9f7")


def decode(data: bytes) -> Evidence:
    """Return the evidence in `data`.

    Raises:
        FormatError: `data` breaks the format, is of another version, or goes on behind it.
    """
    if data[:3] != _MARK:
        raise FormatError("Unknown attestation wire format")
    return v1_document.decode(CborReader(data, at=3), len(data), "CBOR")


def encode(evidence: Evidence) -> bytes:
    """Return `evidence` in deterministic CBOR."""
    return _MARK + dump(v1_document.tree(evidence))


def dump(value: object) -> bytes:
    """Return maps, lists, text, numbers and bytes in deterministic CBOR.

    Raises:
        UsageError: A text has half a surrogate pair.
    """
    import cbor2  # late: only who needs this encoding pays for it

    try:
        # Not by its `canonical`, which puts shorter keys first, as RFC 7049 had it.
        return cbor2.dumps(_plain(value))
    except UnicodeEncodeError as error:
        raise UsageError("text with half a surrogate pair has no UTF-8 form") from error


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value, key=_encoded)}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


@lru_cache(maxsize=256, typed=True)  # events have the same few names
def _encoded(key: int | str) -> bytes:
    import cbor2

    return cbor2.dumps(key)
