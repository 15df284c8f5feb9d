"""Evidence as one CBOR document (`v1-cbor`), the content of CMW records.

The structure is that of wire version 1, with byte strings for byte fields, in deterministic
encoding (RFC 8949, 4.2.1: shortest heads, definite lengths, keys in bytewise order), with the tag
55799 for self-described CBOR (RFC 8949, 3.4.6). No other encoding of evidence begins with the bytes
of that tag, d9 d9 f7. The decoder requires shortest heads and definite lengths, and accepts keys in
any order.
"""

from functools import lru_cache

from attestkit._formats.cbor import CborReader
from attestkit.attestation.wire import v1_document
from attestkit.attestation.wire.evidence_parts import Evidence
from attestkit.errors import FormatError, UsageError

FIRST_BYTES = frozenset([0xD9])
_TAG = bytes.fromhex("d9d9f7")


def decode_evidence(data: bytes) -> Evidence:
    """Decode evidence in CBOR.

    Raises:
        FormatError: If `data` lacks tag 55799 or is malformed, its version is not 1, or bytes
            follow the document.
    """
    if data[:3] != _TAG:
        raise FormatError("Unknown attestation wire format", reason="unrecognized")
    from attestkit.attestation.wire import v1_structs  # lazy: it imports msgspec

    if (found := v1_structs.decode_cbor(data, start=3)) is not None:
        return found
    return v1_document.decode_document(CborReader(data, at=3))


def encode_evidence(evidence: Evidence) -> bytes:
    """Encode evidence in deterministic CBOR.

    Raises:
        UsageError: If the format does not define the evidence's platform, or a text has unpaired
            surrogates.
    """
    return _TAG + encode_cbor(v1_document.build_tree(evidence))


def encode_cbor(value: object) -> bytes:
    """Encode `value`, made of maps, lists, text, integers and bytes, in deterministic CBOR.

    Raises:
        UsageError: If a text has unpaired surrogates.
    """
    import cbor2  # lazy: only needed for this encoding

    try:
        # Not with `canonical=True`, which sorts shorter keys first (RFC 7049).
        return cbor2.dumps(_plain(value))
    except UnicodeEncodeError as error:
        raise UsageError("CBOR: unpaired surrogate in text", reason="encoding") from error


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return bytes(value)
    if isinstance(value, dict):
        return {key: _plain(value[key]) for key in sorted(value, key=_encoded)}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


@lru_cache(maxsize=256, typed=True)  # the same few keys recur in all events
def _encoded(key: int | str) -> bytes:
    import cbor2

    return cbor2.dumps(key)
