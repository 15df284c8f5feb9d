"""Evidence of wire version 1: the structure of the msgpack and CBOR encodings.

    {version: 1, platform: {kind, data: {...}}, stack: {kind, data: {...}}}

The decoder uses a `Reader`, a cursor of either codec, and builds values directly, without a generic
tree: untrusted input can neither nest deeply nor expand into many objects. Keys may have any order,
unknown keys are skipped, duplicate known keys are errors. An array of the fields in order may
replace a map.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from attestkit.attestation.wire.evidence_parts import (
    TPM_PLATFORMS,
    Evidence,
    GcpTdx,
    NitroEnclave,
    NitroTpm,
    PcrValue,
    Platform,
    RuntimeEvent,
    SevSnp,
    Stack,
    Tdx,
    TpmEvent,
    TpmQuote,
)
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.errors import FormatError
from attestkit.event_log.event import WireEvent

__all__ = ["IntArray", "Reader", "build_tree", "decode_document", "decode_part"]

T = TypeVar("T")
VERSION = 1

_U32 = 0xFFFFFFFF


class Reader(Protocol):
    """Bounds-checked cursor; every method reads one value and advances past it."""

    at: int

    def header(self) -> tuple[bool, int]:
        """Read the head of a map or array; return whether it is a map, and its entries."""
        ...

    def count(self) -> int:
        """Read the head of an array; return its number of items, at most the remaining bytes."""
        ...

    def integer(self) -> int:
        """Read an unsigned integer."""
        ...

    def text(self) -> str:
        """Read text."""
        ...

    def blob(self) -> bytes:
        """Read bytes in any representation of the codec."""
        ...

    def nil(self) -> bool:
        """Return whether the next value is nil, and read it if so."""
        ...

    def skip(self) -> None:
        """Skip one value of any depth."""
        ...


class IntArray(bytes):
    """Bytes that msgpack represents as an array of integers; CBOR uses a byte string."""

    __slots__ = ()


class _UnsupportedVersionError(Exception):
    def __init__(self, version: int) -> None:
        super().__init__(f"unsupported attestation version: expected {VERSION}, got {version}")


class _Field(NamedTuple):
    read: Callable[[Reader], Any]
    default: Any = None
    optional: bool = False


def decode_document(reader: Reader, size: int, codec: str) -> Evidence:
    """Decode a document, which must end with the data.

    Args:
        reader: Cursor at the beginning of the document.
        size: Size of the data.
        codec: Name of the codec, for errors.

    Raises:
        FormatError: If the document is malformed, has another version, or has trailing bytes.
    """
    try:
        found = _struct(reader, _DOCUMENT)
    except FormatError as error:
        message = f"failed to decode attestation from {codec}: {error.message}"
        raise FormatError(message, reason=error.reason, offset=error.offset) from error
    except _UnsupportedVersionError as error:
        raise FormatError(str(error), reason="unsupported_version") from error
    if left := size - reader.at:
        message = f"trailing bytes after attestation {codec}: {left}"
        raise FormatError(message, reason="trailing_data")
    return Evidence(found["platform"], found["stack"])


def decode_part(reader: Reader, name: str, size: int) -> object:
    """Decode a single field of a document, which must end with the data.

    Args:
        reader: Cursor at the value.
        name: `tpm_quote`, `cert_chain` or `runtime_events`.
        size: Size of the data.

    Raises:
        FormatError: If the field is malformed, or has trailing bytes.
    """
    found: object = _PARTS[name](reader)
    if left := size - reader.at:
        message = f"{left} bytes after its end"
        raise FormatError(message, reason="trailing_data", offset=reader.at)
    return found


def build_tree(evidence: Evidence) -> dict[str, Any]:
    """Return evidence as maps, lists, text, integers and bytes, with keys in wire order."""
    kind, data = _platform_tree(evidence.platform)
    stack = evidence.stack
    stack_data: dict[str, Any] = {
        "report_data": IntArray(stack.report_data),
        "runtime_events": [
            _versioned(e.version, event=e.event, payload=e.payload) for e in stack.runtime_events
        ],
        "config": stack.config,
    }
    stack_kind = "dstack"
    if stack.report_data_payload is not None:
        stack_kind = "dstack-pod"
        stack_data["report_data_payload"] = stack.report_data_payload
    return {
        "version": VERSION,
        "platform": {"kind": kind, "data": data},
        "stack": {"kind": stack_kind, "data": stack_data},
    }


def _platform_tree(platform: Platform) -> tuple[str, dict[str, Any]]:
    if isinstance(platform, (Tdx, GcpTdx)):
        events = [_tdx_event_tree(event) for event in platform.event_log]
        data: dict[str, Any] = {"quote": IntArray(platform.quote), "event_log": events}
        if isinstance(platform, Tdx):
            return "tdx", data
        return "gcp-tdx", data | {"tpm_quote": _tpm_quote_tree(platform.tpm_quote)}
    if isinstance(platform, NitroEnclave):
        return "nitro-enclave", {"nsm_quote": IntArray(platform.nsm_quote)}
    if isinstance(platform, SevSnp):
        chain = [IntArray(certificate) for certificate in platform.cert_chain]
        report = IntArray(platform.report)
        return "sev-snp", {"report": report, "cert_chain": chain, "mr_config": platform.mr_config}
    return "aws-nitro-tpm", {"attestation_doc": IntArray(platform.attestation_doc)}


def _tdx_event_tree(event: WireEvent) -> dict[str, Any]:
    found = _versioned(
        event.version,
        imr=event.imr,
        event_type=event.event_type,
        digest=event.digest,
        event=event.event,
        event_payload=event.event_payload,
    )
    return found if event.preimage is None else found | {"preimage": event.preimage}


def _versioned(version: int, **fields: object) -> dict[str, Any]:
    return fields if version == 1 else fields | {"version": version}


def _tpm_quote_tree(quote: TpmQuote) -> dict[str, Any]:
    found: dict[str, Any] = quote._asdict()
    found["pcr_values"] = [
        {"index": pcr.number, "algorithm": pcr.algorithm, "value": pcr.value}
        for pcr in quote.pcr_values
    ]
    found["event_log"] = [event._asdict() for event in quote.event_log]
    return found


def _struct(reader: Reader, fields: Mapping[str, _Field]) -> dict[str, Any]:
    start = reader.at
    is_map, count = reader.header()
    found: dict[str, Any] = {}
    if is_map:
        for _ in range(count):
            at = reader.at
            name = reader.text()
            if name in found:
                raise FormatError(f"{name}: occurs twice", reason="duplicate", offset=at)
            if field := fields.get(name):
                found[name] = field.read(reader)
            else:
                reader.skip()
    else:
        if count > len(fields):
            message = f"array of {count} items for a struct of {len(fields)} fields"
            raise FormatError(message, reason="too_many", offset=start)
        for name, field in list(fields.items())[:count]:
            found[name] = field.read(reader)
    for name, field in fields.items():
        if name not in found:
            if not field.optional:
                raise FormatError(f"{name}: missing", reason="missing", offset=start)
            found[name] = field.default
    return found


def _tagged(reader: Reader, kinds: Mapping[str, Callable[[Reader], T]]) -> T:
    """Read {kind, data}; if data comes first, skip it and decode it once the kind is known."""
    known: list[Callable[[Reader], T]] = []

    def kind(reader: Reader) -> None:
        at = reader.at
        if (read_data := kinds.get(reader.text())) is None:
            raise FormatError("kind: unknown platform or stack", reason="unsupported", offset=at)
        known.append(read_data)

    def data(reader: Reader) -> T | int:
        if known:
            return known[0](reader)
        at = reader.at
        reader.skip()
        return at

    found = _struct(reader, {"kind": _Field(kind), "data": _Field(data)})["data"]
    if not isinstance(found, int):
        value: T = found
        return value
    end, reader.at = reader.at, found
    value = known[0](reader)
    reader.at = end
    return value


def _array(item: Callable[[Reader], T]) -> Callable[[Reader], tuple[T, ...]]:
    def read_items(reader: Reader) -> tuple[T, ...]:
        start = reader.at
        count = reader.count()
        if count > MAX_ITEMS:
            message = f"{count} items exceed the limit of {MAX_ITEMS}"
            raise FormatError(message, reason="too_many", offset=start)
        return tuple([item(reader) for _ in range(count)])

    return read_items


def _value(make: Callable[..., T], fields: Mapping[str, _Field]) -> Callable[[Reader], T]:
    def read_value(reader: Reader) -> T:
        return make(**_struct(reader, fields))

    return read_value


def _text(reader: Reader) -> str:
    return reader.text()


def _blob(reader: Reader) -> bytes:
    return reader.blob()


def _u32(reader: Reader) -> int:
    at = reader.at
    value = reader.integer()
    if value > _U32:
        message = f"{value}: must be below 2**32"
        raise FormatError(message, reason="wrong_value", offset=at)
    return value


def _event_version(reader: Reader) -> int:
    at = reader.at
    value = reader.integer()
    if value not in {1, 2}:
        message = f"unsupported runtime event version {value}"
        raise FormatError(message, reason="unsupported_version", offset=at)
    return value


def _document_version(reader: Reader) -> int:
    value = reader.integer()
    if value != VERSION:
        raise _UnsupportedVersionError(value)
    return value


def _tpm_platform(reader: Reader) -> str:
    at = reader.at
    name = reader.text()
    if name not in TPM_PLATFORMS:
        raise FormatError("unknown TPM platform", reason="wrong_value", offset=at)
    return name


def _pcr_value(index: int, algorithm: str, value: bytes) -> PcrValue:
    return PcrValue(index, algorithm, value)


def _preimage(reader: Reader) -> str | None:
    return None if reader.nil() else reader.text()


_VERSION_FIELD = _Field(_event_version, 1, optional=True)
_TDX_EVENT = _value(
    WireEvent,
    {
        "imr": _Field(_u32),
        "event_type": _Field(_u32),
        "digest": _Field(_blob, b"", optional=True),
        "event": _Field(_text),
        "event_payload": _Field(_blob),
        "version": _VERSION_FIELD,
        "preimage": _Field(_preimage, None, optional=True),
    },
)
_RUNTIME_EVENT = _value(
    RuntimeEvent,
    {"event": _Field(_text), "payload": _Field(_blob), "version": _VERSION_FIELD},
)
_TPM_QUOTE = _value(
    TpmQuote,
    {
        "message": _Field(_blob),
        "signature": _Field(_blob),
        "pcr_values": _Field(
            _array(
                _value(
                    _pcr_value,
                    {"index": _Field(_u32), "algorithm": _Field(_text), "value": _Field(_blob)},
                )
            )
        ),
        "ak_cert": _Field(_blob),
        "platform": _Field(_tpm_platform),
        "event_log": _Field(
            _array(_value(TpmEvent, {"pcr_index": _Field(_u32), "digest": _Field(_blob)}))
        ),
    },
)
_TDX_FIELDS = {"quote": _Field(_blob), "event_log": _Field(_array(_TDX_EVENT))}
_PLATFORMS: dict[str, Callable[[Reader], Platform]] = {
    "tdx": _value(Tdx, _TDX_FIELDS),
    "gcp-tdx": _value(GcpTdx, _TDX_FIELDS | {"tpm_quote": _Field(_TPM_QUOTE)}),
    "nitro-enclave": _value(NitroEnclave, {"nsm_quote": _Field(_blob)}),
    "aws-nitro-tpm": _value(NitroTpm, {"attestation_doc": _Field(_blob)}),
    "sev-snp": _value(
        SevSnp,
        {
            "report": _Field(_blob),
            "cert_chain": _Field(_array(_blob)),
            "mr_config": _Field(_text),
        },
    ),
}
_STACK_FIELDS = {
    "report_data": _Field(_blob),
    "runtime_events": _Field(_array(_RUNTIME_EVENT)),
    "config": _Field(_text),
}
_STACKS: dict[str, Callable[[Reader], Stack]] = {
    "dstack": _value(Stack, _STACK_FIELDS),
    "dstack-pod": _value(Stack, _STACK_FIELDS | {"report_data_payload": _Field(_text)}),
}
_DOCUMENT = {
    "version": _Field(_document_version),
    "platform": _Field(lambda reader: _tagged(reader, _PLATFORMS)),
    "stack": _Field(lambda reader: _tagged(reader, _STACKS)),
}
_PARTS: dict[str, Callable[[Reader], Any]] = {
    "tpm_quote": _TPM_QUOTE,
    "cert_chain": _array(_blob),
    "runtime_events": _array(_RUNTIME_EVENT),
}
