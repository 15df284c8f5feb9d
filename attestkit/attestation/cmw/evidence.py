"""Evidence as a RATS Conceptual Message Wrapper (CMW): a collection with a label for each part.

Labels are the names that the parts have in the guest agent's evidence, and `MEDIA_TYPES` says what
stands under each. As a record, or behind a tag, evidence is one document instead: see
`wire.v1_cbor`. Collateral may lie beside the parts; it is handed on as it came, and nothing here
reads it.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

from attestkit._formats import strict_json
from attestkit._formats.cbor import CborReader
from attestkit._sanitize import shown
from attestkit.attestation.cmw import json_form
from attestkit.attestation.cmw import record as cmw
from attestkit.attestation.cmw.record import Cmw, Collection, Indicator, Label, Record
from attestkit.attestation.wire import v1_cbor, v1_document
from attestkit.attestation.wire.evidence_parts import (
    Evidence,
    GcpTdx,
    NitroEnclave,
    NitroTpm,
    Platform,
    SevSnp,
    Stack,
    Tdx,
)
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.errors import FormatError, UsageError
from attestkit.event_log.event import WireEvent

__all__ = ["COLLECTION_TYPE", "MEDIA_TYPES", "Form", "Wrapped", "decode", "encode", "is_cmw"]

T = TypeVar("T")

Form: TypeAlias = Literal["cbor", "cbor-record", "cbor-tag", "json", "json-record"]

COLLECTION_TYPE: Final = "urn:uuid:80af6be3-f67e-4e47-b6f8-9d80239c6a98"
"""What a collection of this kind calls itself: a name that nobody had to register."""

EVIDENCE_TYPE: Final = "application/vnd.attestkit.evidence+cbor"
"""A record that holds all of the evidence in one document of CBOR, tag 55799 in front."""

EVIDENCE_FORMAT: Final = 60
"""The CoAP Content-Format behind the tag: application/cbor. Ours has no number of its own."""

_COSE: Final = 'application/cose; cose-type="cose-sign1"'  # RFC 9052, 11.3; Content-Format 18

MEDIA_TYPES: Final[Mapping[str, str]] = {
    "quote": "application/vnd.attestkit.tdx-quote",
    # The one place that says how the log goes in: with `_write_events` and `_read_events`.
    "event_log": "application/vnd.attestkit.event-log+json",
    "tpm_quote": "application/vnd.attestkit.tpm-quote+cbor",
    "nsm_quote": _COSE,
    "attestation_doc": _COSE,
    "report": "application/vnd.attestkit.snp-report",
    "cert_chain": "application/vnd.attestkit.snp-certificates+cbor",
    "mr_config": "application/vnd.attestkit.mr-config",
    "report_data": "application/vnd.attestkit.report-data",
    "runtime_events": "application/vnd.attestkit.runtime-events+cbor",
    "config": "application/vnd.attestkit.configuration",
    "report_data_payload": "application/vnd.attestkit.report-data-payload",
    "collateral": "application/vnd.attestkit.collateral+json",
}
"""The media type under each label. Only that of COSE is registered."""

_OTHER_NAMES: Final[Mapping[str | int, str]] = {
    18: _COSE,
    EVIDENCE_FORMAT: EVIDENCE_TYPE,
    "application/cbor": EVIDENCE_TYPE,
}
_FIRST_BYTES: Final = frozenset([b"{", b"[", *(bytes([byte]) for byte in range(0xA0, 0xC0))])
_TAGGED: Final = bytes.fromhex("da6374")  # what all tags of Content-Formats begin with
_ENDORSING: Final = Indicator.ENDORSEMENTS | Indicator.REFERENCE_VALUES
_COLLATERAL: Final = "collateral"


class Wrapped(NamedTuple):
    """What one CMW held."""

    evidence: Evidence
    form: Form
    collateral: bytes | None = None  # as it came, nobody has read it


def is_cmw(data: bytes) -> bool:
    """Tell by the first three bytes whether evidence is a CMW, and not in an encoding of dstack's.

    JSON may have blanks in front of it, which begin nothing else.

    In CBOR a record begins with the bytes of a small map in msgpack. The next byte tells: what is
    a number or a text in CBOR is never the text by which such a map goes on.
    """
    first, second = data[:1], data[1:2]
    if first in {b"\x82", b"\x83"}:
        return b"" < second < b"\x80"
    return first in _FIRST_BYTES or data[:3] == _TAGGED or _is_json(data)


def _is_json(data: bytes) -> bool:
    return data.lstrip(b" \t\r\n")[:1] in {b"{", b"["}  # RFC 8259, 2


def encode(form: Form, evidence: Evidence, collateral: bytes | None = None) -> bytes:
    """Return `evidence` in one of the forms of a CMW.

    Args:
        form: `cbor` and `json` are collections, the others one record or tagged message.
        evidence: What to wrap.
        collateral: In nine-field JSON; only a collection has room for it.

    Raises:
        UsageError: A text has half a surrogate pair.
    """
    if form == "cbor-tag":
        return cmw.write_tag(EVIDENCE_FORMAT, v1_cbor.encode(evidence))
    message: Cmw
    if form in {"cbor", "json"}:
        message = _collection(evidence, collateral)
    else:
        message = Record(EVIDENCE_TYPE, v1_cbor.encode(evidence), Indicator.EVIDENCE)
    return cmw.write_cbor(message) if form.startswith("cbor") else json_form.write_json(message)


def decode(data: bytes) -> Wrapped:
    """Read evidence in any form of a CMW.

    Raises:
        FormatError: It breaks the draft, a part breaks its format, or the parts are not those of
            one platform; with the offset in the CMW or the label.
    """
    is_json = _is_json(data)
    message = json_form.read_json(data) if is_json else cmw.read_cbor(data)
    if isinstance(message, Collection):
        parts = _parts(message)
        collateral = parts.pop(_COLLATERAL, None)
        return Wrapped(_evidence(parts), "json" if is_json else "cbor", collateral)
    _check(message, "CMW", EVIDENCE_TYPE, Indicator.EVIDENCE)
    form: Form = "json-record" if is_json else "cbor-tag" if data[0] == 0xDA else "cbor-record"
    return Wrapped(_within("CMW", lambda: v1_cbor.decode(message.value)), form)


def _collection(evidence: Evidence, collateral: bytes | None) -> Collection:
    tree = v1_document.tree(evidence)
    parts: dict[str, Any] = tree["platform"]["data"] | tree["stack"]["data"]
    entries: dict[Label, Cmw] = {
        label: Record(
            MEDIA_TYPES[label],
            _write_events(part) if label == "event_log" else _written(part),
            Indicator.EVIDENCE,
        )
        for label, part in parts.items()
    }
    if collateral is not None:
        entries[_COLLATERAL] = Record(MEDIA_TYPES[_COLLATERAL], collateral, _ENDORSING)
    return Collection(entries, COLLECTION_TYPE)


def _written(part: object) -> bytes:
    if isinstance(part, bytes):
        return bytes(part)
    return _utf8(part) if isinstance(part, str) else v1_cbor.dump(part)


def _parts(collection: Collection) -> dict[str, bytes]:
    """Return the known parts; the draft leaves labels to whoever defines a collection's type."""
    if collection.kind not in {None, COLLECTION_TYPE}:
        raise FormatError(f"this CMW collection is no evidence: its type is {collection.kind}")
    found: dict[str, bytes] = {}
    for label, entry in collection.entries.items():
        if not isinstance(label, str) or (media_type := MEDIA_TYPES.get(label)) is None:
            continue
        if isinstance(entry, Collection):
            raise FormatError(f"{label}: a collection where a record is wanted")
        ind = _ENDORSING if label == _COLLATERAL else Indicator.EVIDENCE
        _check(entry, label, media_type, ind)
        found[label] = entry.value
    return found


def _check(record: Record, where: str, media_type: str, ind: int) -> None:
    given: str | int = record.media_type
    if isinstance(given, str):
        # Types, names of parameters, and the values that we know, are the same in either case.
        given = ";".join([piece.strip(" \t") for piece in given.lower().split(";")])
    if _OTHER_NAMES.get(given, given) not in {media_type, media_type.replace("; ", ";")}:
        raise FormatError(f"{where}: {shown(record.media_type)} where {media_type} is wanted")
    if record.ind is not None and not record.ind & ind:
        raise FormatError(f"{where}: ind {record.ind} has none of the bits {ind}")


class _Kind(NamedTuple):
    """Which parts make up a platform's evidence, and how."""

    make: Callable[..., Platform]
    mark: str  # the label that tells it, if none of the kinds before it
    labels: tuple[str, ...]  # in the order of `make`


_STACK: Final = ("report_data", "runtime_events", "config")
_make_stack: Callable[..., Stack] = Stack
_PAYLOAD: Final = "report_data_payload"
_KINDS: Final = (
    _Kind(GcpTdx, "tpm_quote", ("quote", "event_log", "tpm_quote")),
    _Kind(Tdx, "quote", ("quote", "event_log")),
    _Kind(SevSnp, "report", ("report", "cert_chain", "mr_config")),
    _Kind(NitroEnclave, "nsm_quote", ("nsm_quote",)),
    _Kind(NitroTpm, "attestation_doc", ("attestation_doc",)),
)


def _evidence(parts: dict[str, bytes]) -> Evidence:
    payload = parts.pop(_PAYLOAD, None)
    kind = next((kind for kind in _KINDS if kind.mark in parts), None)
    if kind is None:
        raise FormatError("this CMW collection has no quote, report or document to judge")
    wanted = (*kind.labels, *_STACK)
    if missing := [label for label in wanted if label not in parts]:
        raise FormatError(f"{missing[0]} is missing in this CMW collection")
    if odd := [label for label in parts if label not in wanted]:
        raise FormatError(f"{odd[0]} and {kind.mark} are of different platforms")
    values = {label: _read(label, part) for label, part in parts.items()}
    said = None if payload is None else _within(_PAYLOAD, lambda: _text(payload))
    stack = _make_stack(*[values[label] for label in _STACK], said)
    return Evidence(kind.make(*[values[label] for label in kind.labels]), stack)


def _read(label: str, part: bytes) -> object:
    if label == "event_log":
        return _within(label, lambda: _read_events(part))
    if label in {"config", "mr_config"}:
        return _within(label, lambda: _text(part))
    if label in {"tpm_quote", "cert_chain", "runtime_events"}:
        return _within(label, lambda: v1_document.part(CborReader(part), label, len(part)))
    return part


def _within(label: str, read: Callable[[], T]) -> T:
    """Have what goes wrong within a part told with its label; the offset is one in the part."""
    try:
        return read()
    except FormatError as error:
        message = f"{label}: {error.message}"
        raise FormatError(message, offset=error.offset, reason=error.reason) from error


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError("text with half a surrogate pair has no UTF-8 form") from error


def _text(part: bytes) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError as error:
        raise FormatError("text is not UTF-8", offset=error.start) from error


# -- the event log: to hold it in another form, change these two and its media type above ----------


def _write_events(events: list[dict[str, Any]]) -> bytes:
    """Return the guest agent's array, with each event as evidence carries it, stripped or not."""
    items = [
        {key: value.hex() if isinstance(value, bytes) else value for key, value in event.items()}
        for event in events
    ]
    return _utf8(json.dumps(items, separators=(",", ":"), ensure_ascii=False))


def _read_events(part: bytes) -> tuple[WireEvent, ...]:
    """Read the array; unlike `agent_json` it leaves a preimage as it stands, as V1 does."""
    items = strict_json.read(part, "the log")
    if not isinstance(items, list) or len(items) > MAX_ITEMS:
        raise FormatError(f"the log is no array of at most {MAX_ITEMS} events")
    return tuple([_event(item, at) for at, item in enumerate(items)])


def _event(item: object, at: int) -> WireEvent:
    if not isinstance(item, dict):
        raise FormatError(f"event {at} is no object")
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
        raise FormatError(f"event {at}: {error.message}") from error


def _version(item: dict[str, Any]) -> int:
    version = strict_json.number_field(item, "version", 32, 1)
    if version not in {1, 2}:
        raise FormatError(f"unknown runtime event version {version}")
    return version
