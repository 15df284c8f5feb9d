"""Evidence as a tree of named structs, wire version 1: the shape that msgpack and CBOR share.

    {version: 1, platform: {kind, data: {...}}, stack: {kind, data: {...}}}

Reading goes through a `Reader`, a cursor of either codec, straight into values: no tree is built in
between, so hostile input can neither nest deeply nor fan out into objects. Keys may come in any
order, unknown ones are skipped, a known one that occurs twice is an error, and an array may stand
for a map when it has the fields in order.
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

__all__ = ["Ints", "Reader", "decode", "part", "tree"]

T = TypeVar("T")
VERSION = 1
_WRONG_VERSION = "version"  # reason of the error whose text is the whole message

_U32 = 0xFFFFFFFF


class Reader(Protocol):
    """A bounds-checked cursor; every method reads one value and moves behind it."""

    at: int

    def header(self) -> tuple[bool, int]:
        """Read the head of a map or array: whether it is a map, and its number of entries."""
        ...

    def count(self) -> int:
        """Read the head of an array: its number of items, at most as many as bytes are left."""
        ...

    def integer(self) -> int:
        """Read a number that is not negative."""
        ...

    def text(self) -> str:
        """Read text."""
        ...

    def blob(self) -> bytes:
        """Read bytes, in whichever ways the codec may write them."""
        ...

    def nil(self) -> bool:
        """Read nil if it is next, and tell so."""
        ...

    def skip(self) -> None:
        """Read any one value, however deep, and forget it."""
        ...


class Ints(bytes):
    """Bytes that msgpack writes as an array of numbers; CBOR writes them like all bytes."""

    __slots__ = ()


class _Field(NamedTuple):
    read: Callable[[Reader], Any]
    default: Any = None
    optional: bool = False


def decode(reader: Reader, size: int, codec: str) -> Evidence:
    """Read one document, which must end with the data.

    Args:
        reader: A cursor at the document.
        size: Where the data ends.
        codec: Its name, for errors.

    Raises:
        FormatError: It breaks the format, the offset says where; it is of another version; or the
            data goes on behind it.
    """
    try:
        found = _struct(reader, _DOCUMENT)
    except FormatError as error:
        if error.reason == _WRONG_VERSION:
            raise
        message = f"failed to decode attestation from {codec}: {error.message}"
        raise FormatError(message, offset=error.offset) from error
    if left := size - reader.at:
        raise FormatError(f"trailing bytes after attestation {codec}: {left}")
    return Evidence(found["platform"], found["stack"])


def part(reader: Reader, name: str, size: int) -> object:
    """Read one field of a document that stands alone, and must end with the data.

    Args:
        reader: A cursor at the value.
        name: `tpm_quote`, `cert_chain` or `runtime_events`.
        size: Where the data ends.

    Raises:
        FormatError: It breaks the format, the offset says where; or the data goes on behind it.
    """
    found: object = _PARTS[name](reader)
    if left := size - reader.at:
        raise FormatError(f"{left} bytes behind it", offset=reader.at)
    return found


def tree(evidence: Evidence) -> dict[str, Any]:
    """Return `evidence` as maps, lists, text, numbers and bytes, keys in the order of the wire."""
    kind, data = _platform_tree(evidence.platform)
    stack = evidence.stack
    stack_data: dict[str, Any] = {
        "report_data": Ints(stack.report_data),
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
        data: dict[str, Any] = {"quote": Ints(platform.quote), "event_log": events}
        if isinstance(platform, Tdx):
            return "tdx", data
        return "gcp-tdx", data | {"tpm_quote": _tpm_quote_tree(platform.tpm_quote)}
    if isinstance(platform, NitroEnclave):
        return "nitro-enclave", {"nsm_quote": Ints(platform.nsm_quote)}
    if isinstance(platform, SevSnp):
        chain = [Ints(certificate) for certificate in platform.cert_chain]
        report = Ints(platform.report)
        return "sev-snp", {"report": report, "cert_chain": chain, "mr_config": platform.mr_config}
    return "aws-nitro-tpm", {"attestation_doc": Ints(platform.attestation_doc)}


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
                raise FormatError(f"field {name} occurs twice", offset=at)
            if field := fields.get(name):
                found[name] = field.read(reader)
            else:
                reader.skip()
    else:
        if count > len(fields):
            raise FormatError("array has more items than the struct has fields", offset=start)
        for name, field in list(fields.items())[:count]:
            found[name] = field.read(reader)
    for name, field in fields.items():
        if name not in found:
            if not field.optional:
                raise FormatError(f"field {name} is missing", offset=start)
            found[name] = field.default
    return found


def _tagged(reader: Reader, kinds: Mapping[str, Callable[[Reader], T]]) -> T:
    """Read {kind, data}; where data comes first, it is read once the kind is known."""
    known: list[Callable[[Reader], T]] = []

    def kind(reader: Reader) -> None:
        at = reader.at
        if (read_data := kinds.get(reader.text())) is None:
            raise FormatError("unknown kind", offset=at)
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
            raise FormatError(f"{count} items are more than {MAX_ITEMS}", offset=start)
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
        raise FormatError(f"{value} does not fit into 32 bits", offset=at)
    return value


def _event_version(reader: Reader) -> int:
    at = reader.at
    value = reader.integer()
    if value not in {1, 2}:
        raise FormatError(f"unknown runtime event version {value}", offset=at)
    return value


def _document_version(reader: Reader) -> int:
    value = reader.integer()
    if value != VERSION:
        message = f"unsupported attestation version: expected {VERSION}, got {value}"
        raise FormatError(message, reason=_WRONG_VERSION)
    return value


def _tpm_platform(reader: Reader) -> str:
    at = reader.at
    name = reader.text()
    if name not in TPM_PLATFORMS:
        raise FormatError("unknown TPM platform", offset=at)
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
