"""Evidence in a RATS Conceptual Message Wrapper (CMW).

A collection has one record for each part of the evidence; labels are the field names of the guest
agent's evidence, `MEDIA_TYPES` has their types. A record or a tagged message contains the evidence
as one document, see `wire.v1_cbor`. A collection may also contain collateral and evidence of GPUs,
which are not parsed here.
"""

import json
from collections.abc import Callable, KeysView, Mapping
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

from attestkit._argument_checks import utf8
from attestkit._formats import strict_json
from attestkit._formats.cbor import CborReader, read_canonical
from attestkit._sanitize import shown
from attestkit.attestation.cmw import json_form
from attestkit.attestation.cmw import record as cmw
from attestkit.attestation.cmw.record import Cmw, Collection, Indicator, Label, Record
from attestkit.attestation.wire import evidence_parts, v1_cbor, v1_document
from attestkit.attestation.wire.evidence_parts import Evidence, Platform, Stack
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.errors import FormatError, UsageError
from attestkit.event_log.event import WireEvent

T = TypeVar("T")

CmwEncoding: TypeAlias = Literal["cbor", "cbor-record", "cbor-tag", "json", "json-record"]

COLLECTION_TYPE: Final = "urn:uuid:80af6be3-f67e-4e47-b6f8-9d80239c6a98"
"""Type of a collection with evidence; a UUID needs no registration."""

EVIDENCE_TYPE: Final = "application/vnd.attestkit.evidence+cbor"
"""Media type of a record that contains the evidence as one CBOR document with tag 55799."""

EVIDENCE_FORMAT: Final = 60
"""CoAP Content-Format of a tagged message: application/cbor. `EVIDENCE_TYPE` has no number."""

_COSE: Final = 'application/cose; cose-type="cose-sign1"'  # RFC 9052, 11.3; Content-Format 18

MEDIA_TYPES: Final[Mapping[str, str]] = {
    "quote": "application/vnd.attestkit.tdx-quote",
    # Encoded by `_write_events` and decoded by `_read_events`.
    "event_log": "application/vnd.attestkit.event-log+json",
    "tpm_quote": "application/vnd.attestkit.tpm-quote+cbor",
    "nsm_quote": _COSE,
    "attestation_doc": _COSE,
    "report": "application/vnd.attestkit.snp-report",
    "cert_chain": "application/vnd.attestkit.snp-certificates+cbor",
    "mr_config": "application/vnd.attestkit.mr-config",
    "hcl_report": "application/vnd.attestkit.hcl-report",
    "vtpm_quote": "application/vnd.attestkit.vtpm-quote+cbor",
    "td_quote": "application/vnd.attestkit.tdx-quote",
    "message": "application/vnd.attestkit.go-tpm-tools-attestation",
    "report_data": "application/vnd.attestkit.report-data",
    "runtime_events": "application/vnd.attestkit.runtime-events+cbor",
    "config": "application/vnd.attestkit.configuration",
    "report_data_payload": "application/vnd.attestkit.report-data-payload",
    "collateral": "application/vnd.attestkit.collateral+json",
    "gpu_evidence": "application/vnd.attestkit.gpu-evidence+json",
}
"""Media type of each label. Only the media type of COSE is registered with IANA."""

_OTHER_NAMES: Final[Mapping[str | int, str]] = {
    18: _COSE,
    EVIDENCE_FORMAT: EVIDENCE_TYPE,
    "application/cbor": EVIDENCE_TYPE,
}
_FIRST_BYTES: Final = frozenset([b"{", b"[", *(bytes([byte]) for byte in range(0xA0, 0xC0))])
_TAGGED: Final = bytes.fromhex("da6374")  # first bytes of all tags of Content-Formats
_ENDORSING: Final = Indicator.ENDORSEMENTS | Indicator.REFERENCE_VALUES
_COLLATERAL: Final = "collateral"
_GPU: Final = "gpu_evidence"
# Media type and indicator of the record of each label.
_RECORDS: Final[Mapping[str, tuple[str, int]]] = {
    label: (media_type, _ENDORSING if label == _COLLATERAL else Indicator.EVIDENCE)
    for label, media_type in MEDIA_TYPES.items()
}
_NO_EVENTS: Final = b"\x80"  # an empty array in CBOR


class CmwContent(NamedTuple):
    """Decoded evidence of a CMW, its encoding, and enclosed collateral and GPU evidence in JSON."""

    evidence: Evidence
    encoding: CmwEncoding
    collateral: bytes | None = None  # not parsed
    gpu_evidence: bytes | None = None  # not parsed


def is_cmw(data: bytes) -> bool:
    """Return whether `data`, encoded evidence, is a CMW, and not in an encoding of dstack.

    Only JSON may begin with white space. A CBOR record (an array of 2 or 3 items) begins with the
    same byte as a msgpack map of 2 or 3 entries, so the second byte decides: it is below 0x80 in a
    CBOR record, whose first item is an integer or a text string, and at least 0x80 in a msgpack
    map, whose first key is a string.
    """
    first, second = data[:1], data[1:2]
    if first in {b"\x82", b"\x83"}:
        return b"" < second < b"\x80"
    return first in _FIRST_BYTES or data[:3] == _TAGGED or _is_json(data)


def _is_json(data: bytes) -> bool:
    return data.lstrip(b" \t\r\n")[:1] in {b"{", b"["}  # RFC 8259, 2


def encode_evidence(
    encoding: CmwEncoding,
    evidence: Evidence,
    collateral: bytes | None = None,
    gpu_evidence: bytes | None = None,
) -> bytes:
    """Encode evidence as a CMW.

    Args:
        encoding: `cbor` and `json` are collections, the others a record or a tagged message.
        evidence: The evidence.
        collateral: Collateral in JSON; only collections include it, others ignore it.
        gpu_evidence: Evidence of GPUs in JSON; only collections include it, others ignore it.

    Raises:
        UsageError: If a text has unpaired surrogates, or `encoding` is a record or a tagged message
            and dstack's formats do not define the evidence's platform.
    """
    if encoding == "cbor-tag":
        return cmw.write_tag(EVIDENCE_FORMAT, v1_cbor.encode_evidence(evidence))
    message: Cmw
    if encoding in {"cbor", "json"}:
        message = _collection(evidence, collateral, gpu_evidence)
    else:
        message = Record(EVIDENCE_TYPE, v1_cbor.encode_evidence(evidence), Indicator.EVIDENCE)
    return cmw.write_cbor(message) if encoding.startswith("cbor") else json_form.write_json(message)


def decode_evidence(data: bytes) -> CmwContent:
    """Decode `data`, a CMW in JSON or CBOR that contains evidence.

    Raises:
        FormatError: If the CMW or a part is malformed, a part is missing, or the parts belong to
            different platforms. For a malformed part, the message begins with its label.
    """
    if (td := evidence_parts.decode_cmw_td(data)) is not None:
        return CmwContent(td[0], "cbor", td[1])
    if (parts := _read_plain_parts(data)) is not None:
        return _collection_content(parts, "cbor")
    is_json = _is_json(data)
    message = json_form.read_json(data) if is_json else cmw.read_cbor(data)
    if isinstance(message, Collection):
        return _collection_content(_known_parts(message), "json" if is_json else "cbor")
    _check(message, "CMW", EVIDENCE_TYPE, Indicator.EVIDENCE)
    encoding: CmwEncoding = (
        "json-record" if is_json else "cbor-tag" if data[0] == 0xDA else "cbor-record"
    )
    return CmwContent(_with_label("CMW", lambda: v1_cbor.decode_evidence(message.value)), encoding)


def _collection(
    evidence: Evidence, collateral: bytes | None, gpu_evidence: bytes | None
) -> Collection:
    entries: dict[Label, Cmw] = {
        label: Record(
            MEDIA_TYPES[label],
            _write_events(part) if label == "event_log" else _encode_part(part),
            Indicator.EVIDENCE,
        )
        for label, part in v1_document.build_parts(evidence).items()
    }
    if collateral is not None:
        entries[_COLLATERAL] = Record(MEDIA_TYPES[_COLLATERAL], collateral, _ENDORSING)
    if gpu_evidence is not None:
        entries[_GPU] = Record(MEDIA_TYPES[_GPU], gpu_evidence, Indicator.EVIDENCE)
    return Collection(entries, COLLECTION_TYPE)


def _encode_part(part: object) -> bytes:
    if isinstance(part, bytes):
        return bytes(part)
    if isinstance(part, str):
        return utf8(part, "CMW", UsageError)
    return v1_cbor.encode_cbor(part)


def _read_plain_parts(data: bytes) -> dict[str, bytes] | None:
    """Return the parts by label of `data`, a collection in CBOR encoded as attestkit writes it.

    Return None for any other CMW, which the full reader then decodes, or rejects with an error.
    cbor2 is much faster than that reader.
    """
    try:
        tree = read_canonical(data, 0)
    except FormatError:
        return None
    if not isinstance(tree, dict) or tree.pop(cmw.KIND, None) != COLLECTION_TYPE:
        return None
    found: dict[str, bytes] = {}
    for label, record in tree.items():
        if not isinstance(label, str) or not isinstance(record, list) or len(record) != 3:
            return None
        media_type, part, ind = record
        if (media_type, ind) != _RECORDS.get(label) or not isinstance(part, bytes):
            return None
        found[label] = part
    return found or None


def _collection_content(parts: dict[str, bytes], encoding: CmwEncoding) -> CmwContent:
    collateral, gpu_evidence = parts.pop(_COLLATERAL, None), parts.pop(_GPU, None)
    return CmwContent(_build_evidence(parts), encoding, collateral, gpu_evidence)


def _known_parts(collection: Collection) -> dict[str, bytes]:
    """Return the parts with known labels, and ignore others.

    The CMW draft lets the type of a collection define its labels.
    """
    if collection.kind not in {None, COLLECTION_TYPE}:
        message = f"CMW collection: type {shown(collection.kind or '')} is not that of evidence"
        raise FormatError(message, reason="unrecognized")
    found: dict[str, bytes] = {}
    for label, entry in collection.entries.items():
        if not isinstance(label, str) or (known := _RECORDS.get(label)) is None:
            continue
        if isinstance(entry, Collection):
            raise FormatError(f"{label}: must be a record, not a collection", reason="wrong_type")
        _check(entry, label, *known)
        found[label] = entry.value
    return found


def _check(record: Record, where: str, media_type: str, ind: int) -> None:
    if record.media_type != media_type and not _is_equivalent(record.media_type, media_type):
        message = f"{where}: media type must be {media_type}, not {shown(record.media_type)}"
        raise FormatError(message, reason="wrong_value")
    if record.ind is not None and not record.ind & ind:
        other = "1 (reference values) or 2 (endorsements)"
        bits = "4 (evidence)" if ind == Indicator.EVIDENCE else other
        message = f"{where}: ind: {record.ind}, must have bit {bits}"
        raise FormatError(message, reason="inconsistent")


def _is_equivalent(given: str | int, media_type: str) -> bool:
    """Return whether `given` is a media type written differently, or another name for it."""
    if isinstance(given, str):
        # Types, parameter names, and the known parameter values are case-insensitive.
        given = ";".join([piece.strip(" \t") for piece in given.lower().split(";")])
    return _OTHER_NAMES.get(given, given) in {media_type, media_type.replace("; ", ";")}


_STACK: Final = Stack._fields[:-1]
_PAYLOAD: Final = "report_data_payload"
# By labels that together identify the platform, unless earlier ones are present.
_PLATFORMS: Final[Mapping[tuple[str, ...], type[Platform]]] = {
    ("vtpm_quote", "report"): evidence_parts.GcpSnp,
    ("tpm_quote",): evidence_parts.GcpTdx,
    ("quote",): evidence_parts.Tdx,
    ("hcl_report", "td_quote"): evidence_parts.AzureTdx,
    ("hcl_report",): evidence_parts.AzureSnp,
    ("report",): evidence_parts.SevSnp,
    ("nsm_quote",): evidence_parts.NitroEnclave,
    ("attestation_doc",): evidence_parts.NitroTpm,
    ("vtpm_quote",): evidence_parts.Tpm,
    ("message",): evidence_parts.GoTpmTools,
}


_COMPLETE: Final[Mapping[frozenset[str], type[Platform]]] = {
    frozenset((*platform._fields, *_STACK)): platform for platform in _PLATFORMS.values()
}
"""Platforms by the labels of a collection that has all parts, and no other record."""


def _build_evidence(parts: dict[str, bytes]) -> Evidence:
    payload = parts.pop(_PAYLOAD, None)
    if (platform := _COMPLETE.get(frozenset(parts))) is None:
        raise _wrong_labels(parts.keys())
    values = {label: _read(label, part) for label, part in parts.items()}
    payload_text = None if payload is None else _read(_PAYLOAD, payload)
    stack = Stack._make([*[values[label] for label in _STACK], payload_text])
    return Evidence(platform._make([values[label] for label in platform._fields]), stack)


def _wrong_labels(found: KeysView[str]) -> FormatError:
    """Return the error for labels `found` that lack one, or are of several platforms."""
    key_labels = next((labels for labels in _PLATFORMS if found >= {*labels}), None)
    if key_labels is None:
        return FormatError("CMW collection: quote, report or document missing", reason="missing")
    required = (*_PLATFORMS[key_labels]._fields, *_STACK)
    if missing := [label for label in required if label not in found]:
        return FormatError(f"CMW collection: {missing[0]} missing", reason="missing")
    other = next(label for label in found if label not in required)
    message = f"CMW collection: {other} and {key_labels[0]} belong to different platforms"
    return FormatError(message, reason="inconsistent")


def _read(label: str, part: bytes) -> object:
    if (decode := _DECODERS.get(label)) is None:
        return part
    return _with_label(label, lambda: decode(part))


def _read_cbor(label: str, part: bytes) -> object:
    if part == _NO_EVENTS and label == "runtime_events":
        return ()
    from attestkit.attestation.wire import v1_structs  # lazy: it imports msgspec

    found = getattr(v1_structs, _CBOR_DECODERS[label])(part)
    return v1_document.decode_part(CborReader(part), label) if found is None else found


def _with_label(label: str, read: Callable[[], T]) -> T:
    """Return `read()`, which decodes the part of a collection with the label `label`.

    Raises:
        FormatError: That of `read`, with the label before its text; its offset is relative to the
            part.
    """
    try:
        return read()
    except FormatError as error:
        message = f"{label}: {error.message}"
        raise FormatError(message, offset=error.offset, reason=error.reason) from error


def _text(part: bytes) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8 text", reason="encoding", offset=error.start) from error


# -- event log -------------------------------------------------------------------------------------


def _write_events(events: list[dict[str, Any]]) -> bytes:
    """Encode events as the JSON array of the guest agent API; removed fields stay empty."""
    items = [
        {key: value.hex() if isinstance(value, bytes) else value for key, value in event.items()}
        for event in events
    ]
    return utf8(json.dumps(items, separators=(",", ":"), ensure_ascii=False), "CMW", UsageError)


def _read_events(part: bytes) -> tuple[WireEvent, ...]:
    """Decode `part`, an event log as a JSON array; preimages stay text, as in wire version 1."""
    from attestkit.attestation.wire import v1_structs  # lazy: it imports msgspec

    if (events := v1_structs.decode_json_log(part)) is not None:
        return events
    items = strict_json.read(part)
    if not isinstance(items, list) or len(items) > MAX_ITEMS:
        message = f"must be an array of at most {MAX_ITEMS} events"
        raise FormatError(message, reason="too_many" if isinstance(items, list) else "wrong_type")
    return tuple([_event(item, at) for at, item in enumerate(items)])


def _event(item: object, at: int) -> WireEvent:
    if not isinstance(item, dict):
        raise FormatError(f"event {at}: must be an object", reason="wrong_type")
    try:
        preimage = item.get("preimage")
        return WireEvent(
            strict_json.number_field(item, "imr", 32),
            strict_json.number_field(item, "event_type", 32),
            strict_json.hex_field(item, "digest"),
            strict_json.string(item, "event"),
            strict_json.from_hex(item.get("event_payload"), "event_payload"),
            _version(item),
            None if preimage is None else strict_json.string(item, "preimage"),
        )
    except FormatError as error:
        raise FormatError(f"event {at}: {error.message}", reason=error.reason) from error


def _version(item: dict[str, Any]) -> int:
    version = strict_json.number_field(item, "version", 32, 1)
    if version not in {1, 2}:
        message = f"unsupported runtime event version {version}"
        raise FormatError(message, reason="unsupported_version")
    return version


# Functions of `v1_structs` that decode a part as attesters encode it, or return None.
_CBOR_DECODERS: Final = {
    "tpm_quote": "decode_tpm_quote",
    "vtpm_quote": "decode_vtpm_quote",
    "cert_chain": "decode_certificates",
    "runtime_events": "decode_runtime_events",
}
# Other parts are bytes.
_DECODERS: Final[Mapping[str, Callable[[bytes], object]]] = {
    "event_log": _read_events,
    **dict.fromkeys(("config", "mr_config", _PAYLOAD), _text),
    **{label: partial(_read_cbor, label) for label in _CBOR_DECODERS},
}
