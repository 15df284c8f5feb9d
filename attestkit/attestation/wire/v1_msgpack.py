"""Evidence in msgpack, wire version 1; agents use it if an event has digest version 2.

Bytes have two representations: quote, report, certificates and report data are arrays of integers,
digests and payloads have the type bin. The decoder accepts both for all of them.
"""

from attestkit._formats.msgpack import MsgpackReader
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire import v1_document
from attestkit.attestation.wire.evidence_parts import Evidence
from attestkit.attestation.wire.v1_document import IntArray
from attestkit.errors import UsageError

FIRST_BYTES = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])


def decode_evidence(data: bytes) -> Evidence:
    """Decode evidence in msgpack.

    Raises:
        FormatError: If `data` is malformed, its version is not 1, or bytes follow the document.
    """
    if (found := parts.decode_msgpack_td(data)) is not None:
        return found
    return v1_document.decode_document(MsgpackReader(data))


def encode_evidence(evidence: Evidence) -> bytes:
    """Encode evidence in msgpack.

    Raises:
        UsageError: If the format does not define the evidence's platform, or a text has unpaired
            surrogates.
    """
    import msgspec.msgpack  # lazy: only needed for this encoding

    try:
        return msgspec.msgpack.encode(_with_int_arrays(v1_document.build_tree(evidence)))
    except UnicodeEncodeError as error:
        raise UsageError("msgpack: unpaired surrogate in text", reason="encoding") from error


def _with_int_arrays(value: object) -> object:
    if isinstance(value, IntArray):
        return list(value)
    if isinstance(value, dict):
        return {key: _with_int_arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_int_arrays(item) for item in value]
    return value
