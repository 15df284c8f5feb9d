"""Encodings of evidence: their names, and how each is recognised, decoded and encoded."""

from collections.abc import Callable, Mapping
from typing import Final, Literal, NamedTuple

from attestkit.attestation.cmw import evidence as cmw_evidence
from attestkit.attestation.wire import v0_scale, v1_cbor, v1_msgpack
from attestkit.attestation.wire.evidence_parts import Evidence
from attestkit.errors import FormatError

Encoding = Literal[
    "v0",
    "v1",
    "cbor",
    "cbor-record",
    "cbor-tag",
    "json",
    "json-record",
    "v1-cbor",
    "coco",
    "go-tpm-tools",
]
"""Encodings of evidence: `v0` is SCALE, `v1` msgpack, `v1-cbor` the same structure in CBOR.

All others are a RATS Conceptual Message Wrapper (CMW, draft-ietf-rats-msg-wrap): `cbor` and `json`
are a collection with one record for each part, and the only ones that can include collateral and
evidence of GPUs; `cbor-record`, `json-record` and `cbor-tag` are one message that contains a
`v1-cbor`.

Evidence of platforms that dstack does not define has the encodings `cbor` and `json` only, and
`coco`, the JSON of Confidential Containers' attesters, if it is of Azure or of a TPM alone.
`go-tpm-tools` is that project's message `attest.Attestation`, for evidence of a TPM alone.
"""

_COCO_MEMBERS: Final = (b'"signature"', b'"message"', b'"pcrs"')
_COCO_QUOTES: Final = (b'"quote"', b'"tpm_quote"')


class Decoded(NamedTuple):
    """Decoded evidence and its encoding, and other parts of a CMW, not parsed."""

    evidence: Evidence
    encoding: Encoding  # in which the evidence was received
    collateral: bytes | None = None  # JSON; None if the CMW has none
    gpu_evidence: bytes | None = None  # JSON; None if the CMW has none


class Enclosed(NamedTuple):
    """Parts of a CMW other than the evidence of the CPU, not parsed."""

    collateral: bytes | None = None
    gpu_evidence: bytes | None = None


def decode(data: bytes) -> Decoded:
    """Decode evidence in any `Encoding`; `data` must not be empty.

    Raises:
        FormatError: If `data` is malformed, or in an unknown encoding.
    """
    if data[0] in v0_scale.FIRST_BYTES:
        return Decoded(v0_scale.decode_evidence(data), "v0")
    if _is_go_tpm_tools(data):
        from attestkit.attestation import go_tpm_tools  # lazy: only for this encoding

        return Decoded(go_tpm_tools.decode_evidence(data), "go-tpm-tools")
    if _is_coco(data):
        from attestkit.attestation import coco  # lazy: only for this encoding

        return Decoded(coco.decode_evidence(data), "coco")
    if cmw_evidence.is_cmw(data):
        return Decoded(*cmw_evidence.decode_evidence(data))
    if data[0] in v1_msgpack.FIRST_BYTES:
        return Decoded(v1_msgpack.decode_evidence(data), "v1")
    if data[0] in v1_cbor.FIRST_BYTES:
        return Decoded(v1_cbor.decode_evidence(data), "v1-cbor")
    raise FormatError("Unknown attestation wire format", reason="unrecognized")


def _encode_coco(evidence: Evidence, _: Enclosed) -> bytes:
    from attestkit.attestation import coco  # lazy: only for this encoding

    return coco.encode_evidence(evidence)


def _encode_go_tpm_tools(evidence: Evidence, _: Enclosed) -> bytes:
    from attestkit.attestation import go_tpm_tools  # lazy: only for this encoding

    return go_tpm_tools.encode_evidence(evidence)


def _cmw(encoding: cmw_evidence.CmwEncoding) -> Callable[[Evidence, Enclosed], bytes]:
    return lambda evidence, enclosed: cmw_evidence.encode_evidence(encoding, evidence, *enclosed)


ENCODE: Final[Mapping[Encoding, Callable[[Evidence, Enclosed], bytes]]] = {
    "v0": lambda evidence, _: v0_scale.encode_evidence(evidence),
    "v1": lambda evidence, _: v1_msgpack.encode_evidence(evidence),
    "cbor": _cmw("cbor"),
    "cbor-record": _cmw("cbor-record"),
    "cbor-tag": _cmw("cbor-tag"),
    "json": _cmw("json"),
    "json-record": _cmw("json-record"),
    "v1-cbor": lambda evidence, _: v1_cbor.encode_evidence(evidence),
    "coco": _encode_coco,
    "go-tpm-tools": _encode_go_tpm_tools,
}
"""Function that encodes evidence, by encoding.

It raises UsageError if the encoding cannot represent the evidence.
"""


def _is_coco(data: bytes) -> bool:
    """Return whether `data` is JSON with the members of a TPM quote of CoCo's attesters."""
    return (
        data.lstrip(b" \t\r\n")[:1] == b"{"
        and all(word in data for word in _COCO_MEMBERS)
        and any(word in data for word in _COCO_QUOTES)
    )


def _is_go_tpm_tools(data: bytes) -> bool:
    """Return whether `data` begins as a protobuf message whose first field is a TPMT_PUBLIC.

    The field is number 1, of bytes; its size has one or two bytes. The public area begins with the
    type of the key, RSA or ECC. JSON may begin with the same byte, a line feed, but has no zeros.
    """
    at = 2 if data[1:2] < b"\x80" else 3
    return data[:1] == b"\n" and data[at : at + 2] in {b"\0\1", b"\0\x23"}
