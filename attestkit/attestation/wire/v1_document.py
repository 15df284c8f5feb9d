"""Evidence of wire version 1: the structure of the msgpack and CBOR encodings.

    {version: 1, platform: {kind, data: {...}}, stack: {kind, data: {...}}}

The decoder uses a `Reader`, a cursor of either codec, and builds values directly, without a generic
tree: untrusted input can neither nest deeply nor expand into many objects. Keys may have any order,
unknown keys are skipped, duplicate known keys are errors. A struct may also be an array of its
fields in their order.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar, get_args, get_origin

from attestkit._formats.cbor import CborReader
from attestkit._formats.msgpack import MsgpackReader
from attestkit._sanitize import shown
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire.evidence_parts import Evidence, Platform, Stack
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.errors import FormatError
from attestkit.event_log.event import WireEvent

T = TypeVar("T")
VERSION = 1

Reader: TypeAlias = CborReader | MsgpackReader

_U32 = 0xFFFFFFFF


class IntArray(bytes):
    """Bytes that msgpack represents as an array of integers; CBOR uses a byte string."""

    __slots__ = ()


class _UnsupportedVersionError(Exception):
    def __init__(self, version: int) -> None:
        super().__init__(f"unsupported attestation version: expected {VERSION}, got {version}")


class _Field(NamedTuple):
    read: Callable[[Reader], Any]  # reads and returns the value at the cursor
    default: Any = None  # value if the field is missing
    optional: bool = False  # whether it may be missing


def decode_document(reader: Reader) -> Evidence:
    """Decode a version 1 document, which must extend to the end of the reader's data.

    Raises:
        FormatError: If the document is malformed, its version is not 1, or bytes follow it.
    """
    try:
        found = _struct(reader, _DOCUMENT)
    except FormatError as error:
        message = f"failed to decode attestation from {reader.CODEC}: {error.message}"
        raise FormatError(message, reason=error.reason, offset=error.offset) from error
    except _UnsupportedVersionError as error:
        raise FormatError(str(error), reason="unsupported_version") from error
    if left := reader.remaining:
        message = f"trailing bytes after attestation {reader.CODEC}: {left}"
        raise FormatError(message, reason="trailing_data")
    return Evidence(found["platform"], found["stack"])


def decode_part(reader: Reader, name: str) -> object:
    """Decode the field `name` of the platform or stack from the reader's data, which ends with it.

    A CMW collection has one record for each such field, such as `runtime_events`. The type of the
    result is that of the field in `evidence_parts`.

    Raises:
        FormatError: If the field is malformed, or has trailing bytes.
    """
    found: object = _PARTS[name](reader)
    reader.finish(reader.CODEC)
    return found


def build_tree(evidence: Evidence) -> dict[str, Any]:
    """Return the document: evidence as maps, lists, text, integers and bytes, keys in wire order.

    Raises:
        UsageError: If the version 1 format does not define the evidence's platform.
    """
    platform, stack = evidence
    kind = next((kind for kind, make in _PLATFORM_KINDS.items() if make is type(platform)), None)
    if kind is None:
        raise parts.not_of_dstack("v1", platform)
    stack_kind = "dstack" if stack.report_data_payload is None else "dstack-pod"
    return {
        "version": VERSION,
        "platform": {"kind": kind, "data": _part_trees(platform)},
        "stack": {"kind": stack_kind, "data": _stack_trees(stack)},
    }


def build_parts(evidence: Evidence) -> dict[str, Any]:
    """Return the fields of platform and stack by name in one mapping, encoded as in `build_tree`.

    The platform may also be one that version 1 does not define.
    """
    platform, stack = evidence
    return _part_trees(platform) | _stack_trees(stack)


def _part_trees(fields: Platform | Stack) -> dict[str, Any]:
    return {name: _TREES.get(name, _tree)(part) for name, part in fields._asdict().items()}


def _stack_trees(stack: Stack) -> dict[str, Any]:
    found = _part_trees(stack)
    if stack.report_data_payload is None:
        del found["report_data_payload"]
    return found


def _tree(part: object) -> object:
    return IntArray(part) if isinstance(part, bytes) else part


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


def _tpm_quote_tree(quote: parts.TpmQuote) -> dict[str, Any]:
    found: dict[str, Any] = quote._asdict()
    found["pcr_values"] = _pcr_trees(quote.pcr_values)
    found["event_log"] = [event._asdict() for event in quote.event_log]
    return found


def _vtpm_quote_tree(quote: parts.VtpmQuote) -> dict[str, Any]:
    found: dict[str, Any] = quote._asdict()
    found["pcr_values"] = _pcr_trees(quote.pcr_values)
    found["ak_certificates"] = list(quote.ak_certificates)
    return found


def _pcr_trees(values: tuple[parts.PcrValue, ...]) -> list[dict[str, Any]]:
    return [{"index": pcr.number, "algorithm": pcr.algorithm, "value": pcr.value} for pcr in values]


_TREES: dict[str, Callable[[Any], object]] = {
    "event_log": lambda events: [_tdx_event_tree(event) for event in events],
    "tpm_quote": _tpm_quote_tree,
    "vtpm_quote": _vtpm_quote_tree,
    "cert_chain": lambda chain: [IntArray(certificate) for certificate in chain],
    "runtime_events": lambda events: [
        _versioned(event.version, event=event.event, payload=event.payload) for event in events
    ],
}


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
            message = f"array of {count} items, at most {len(fields)}, one for each field"
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
    """Read a map {kind, data} and return its data; `kinds` has a decoder for each kind.

    If `data` precedes `kind`, it is skipped, and decoded when the kind is known.
    """
    known: list[Callable[[Reader], T]] = []

    def kind(reader: Reader) -> None:
        at = reader.at
        if (read_data := kinds.get(name := reader.text())) is None:
            message = f"kind: unsupported platform or stack: {shown(name)}"
            raise FormatError(message, reason="unsupported", offset=at)
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
            message = f"array of {count} items, at most {MAX_ITEMS}"
            raise FormatError(message, reason="too_many", offset=start)
        return tuple([item(reader) for _ in range(count)])

    return read_items


def _u32(reader: Reader) -> int:
    at = reader.at
    value = reader.integer()
    if value > _U32:
        raise FormatError(f"integer: must be below 2**32: {value}", reason="wrong_value", offset=at)
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
    if name not in parts.TPM_PLATFORMS:
        raise FormatError(f"TPM platform: unknown: {shown(name)}", reason="wrong_value", offset=at)
    return name


def _preimage(reader: Reader) -> str | None:
    return None if reader.nil() else reader.text()


# Readers of fields that need more than their type says.
_FIELD_READERS: dict[tuple[type, str], Callable[[Reader], Any]] = {
    (WireEvent, "version"): _event_version,
    (WireEvent, "preimage"): _preimage,
    (parts.RuntimeEvent, "version"): _event_version,
    (parts.TpmQuote, "platform"): _tpm_platform,
}
_SCALARS: dict[type, Callable[[Reader], Any]] = {
    int: _u32,
    str: lambda reader: reader.text(),
    bytes: lambda reader: reader.blob(),
}
_NAMES = {"number": "index"}  # of fields on the wire, where they differ


def _reader_of(kind: Any) -> Callable[[Reader], Any]:  # noqa: ANN401 - a type
    """Return a function that reads values of `kind`, the type of a field of evidence."""
    if get_origin(kind) is tuple:
        return _array(_reader_of(get_args(kind)[0]))
    if scalar := _SCALARS.get(kind):
        return scalar
    defaults: dict[str, Any] = {"digest": b""} if kind is WireEvent else {}
    defaults |= kind._field_defaults
    fields = {}
    for name, of in kind.__annotations__.items():
        read = _FIELD_READERS.get((kind, name)) or _reader_of(of)
        fields[_NAMES.get(name, name)] = _Field(read, defaults.get(name), name in defaults)
    return _struct_reader(kind, fields)


def _struct_reader(make: Callable[..., T], fields: Mapping[str, _Field]) -> Callable[[Reader], T]:
    """Return a function that reads a struct, and calls `make` with its fields in their order."""

    def read_struct(reader: Reader) -> T:
        found = _struct(reader, fields)
        return make(*[found[name] for name in fields])

    return read_struct


# The fields of all platforms and of the stack; no two with the same name have different types.
_PARTS: dict[str, Callable[[Reader], Any]] = {
    name: _SCALARS[str] if name == "report_data_payload" else _reader_of(of)
    for kind in (*parts.PLATFORM_NAMES, Stack)
    for name, of in kind.__annotations__.items()
}
# The platforms that dstack defines; the others have no form in version 1.
_PLATFORM_KINDS: dict[str, type[Platform]] = {
    "tdx": parts.Tdx,
    "gcp-tdx": parts.GcpTdx,
    "nitro-enclave": parts.NitroEnclave,
    "aws-nitro-tpm": parts.NitroTpm,
    "sev-snp": parts.SevSnp,
}


def _parts(make: Callable[..., T], names: Sequence[str]) -> Callable[[Reader], T]:
    return _struct_reader(make, {name: _Field(_PARTS[name]) for name in names})


_PLATFORMS = {kind: _parts(make, make._fields) for kind, make in _PLATFORM_KINDS.items()}
_STACKS = {"dstack": _parts(Stack, Stack._fields[:-1]), "dstack-pod": _parts(Stack, Stack._fields)}
_DOCUMENT = {
    "version": _Field(_document_version),
    "platform": _Field(lambda reader: _tagged(reader, _PLATFORMS)),
    "stack": _Field(lambda reader: _tagged(reader, _STACKS)),
}
