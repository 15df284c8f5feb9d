"""Evidence in SCALE, wire version 0; agents use it unless an event has digest version 2."""

from collections.abc import Callable
from struct import Struct
from typing import Any, Final, NamedTuple

from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire import scale
from attestkit.attestation.wire.evidence_parts import Evidence, Platform, Stack
from attestkit.attestation.wire.scale import ScaleReader
from attestkit.errors import FormatError, UsageError
from attestkit.event_log.event import WireEvent

FIRST_BYTES = frozenset([0])
_FAILED = "Failed to decode legacy VersionedAttestation"


class _Type(NamedTuple):
    """Functions that decode and encode the values of a type."""

    read: Callable[[ScaleReader], Any]
    write: Callable[[Any], bytes]


def _vector(item: _Type) -> _Type:
    return _Type(
        lambda reader: reader.vector(item.read),
        lambda items: scale.encode_vector(map(item.write, items)),
    )


def _struct(make: Callable[..., object], *fields: _Type) -> _Type:
    """Return the type of a named tuple.

    Args:
        make: Class of the tuple, or a function; called with the decoded values of `fields` as
            positional arguments, so further fields of the tuple get their defaults.
        fields: Types of the first fields of the tuple, in their order.
    """
    return _Type(
        lambda reader: make(*[field.read(reader) for field in fields]),
        lambda value: b"".join(
            [field.write(part) for field, part in zip(fields, value, strict=False)]
        ),
    )


def _tpm_platform(reader: ScaleReader) -> str:
    index = reader.u8()
    if index >= len(parts.TPM_PLATFORMS):
        message = f"unknown TPM platform {index}"
        raise FormatError(message, reason="wrong_value", offset=reader.at - 1)
    return parts.TPM_PLATFORMS[index]


_U32: Final = _Type(ScaleReader.u32, scale.encode_u32)
_BLOB: Final = _Type(ScaleReader.blob, scale.encode_blob)
_TEXT: Final = _Type(ScaleReader.text, scale.encode_text)
_EVENT: Final = _struct(WireEvent, _U32, _U32, _BLOB, _TEXT, _BLOB)
# Beginning of nearly every event of a TD: register, type, length of the digest, digest (48 bytes),
# and the first byte of the length of the name.
_EVENT_HEAD: Final = Struct("<IIB48sB")
_new_tuple = tuple.__new__


def _read_event(reader: ScaleReader) -> WireEvent:
    data, at = reader.data, reader.at
    end = at + _EVENT_HEAD.size
    if end <= len(data) and data[at + 8] == 48 << 2:
        imr, event_type, _, digest, name_size = _EVENT_HEAD.unpack_from(data, at)
        reader.at = end - 1 if name_size else end
        name = reader.text() if name_size else ""
        return _new_tuple(WireEvent, (imr, event_type, digest, name, reader.blob(), 1, None))
    event: WireEvent = _EVENT.read(reader)
    return event


def _write_event(event: WireEvent) -> bytes:
    return (  # written out, because a log has many events
        scale.encode_u32(event.imr)
        + scale.encode_u32(event.event_type)
        + scale.encode_blob(event.digest)
        + scale.encode_text(event.event)
        + scale.encode_blob(event.event_payload)
    )


_LOG: Final = _vector(_Type(_read_event, _write_event))
_TPM_QUOTE: Final = _struct(
    parts.TpmQuote,
    _BLOB,
    _BLOB,
    _vector(_struct(parts.PcrValue, _U32, _TEXT, _BLOB)),
    _BLOB,
    _Type(_tpm_platform, lambda name: bytes([parts.TPM_PLATFORMS.index(name)])),
    _vector(_struct(parts.TpmEventDigest, _U32, _BLOB)),
)
_RUNTIME_EVENTS: Final = _vector(
    _Type(
        lambda reader: parts.RuntimeEvent(reader.text(), reader.blob()),
        lambda event: scale.encode_text(event.event) + scale.encode_blob(event.payload),
    )
)
# In the order of their indices on the wire.
_PLATFORMS: Final[dict[type[Platform], _Type]] = {
    parts.Tdx: _struct(parts.Tdx, _BLOB, _LOG),
    parts.GcpTdx: _struct(parts.GcpTdx, _BLOB, _LOG, _TPM_QUOTE),
    parts.NitroEnclave: _struct(parts.NitroEnclave, _BLOB),
    parts.SevSnp: _struct(parts.SevSnp, _BLOB, _vector(_BLOB), _TEXT),
    parts.NitroTpm: _struct(parts.NitroTpm, _BLOB),
}
_KINDS: Final = list(_PLATFORMS)


def decode_evidence(data: bytes) -> Evidence:
    """Decode `data`, evidence in SCALE whose first byte is the version, 0; it is not checked here.

    Raises:
        FormatError: If `data` is malformed, or has trailing bytes.
    """
    if (found := parts.decode_scale_td(data)) is not None:
        return found
    reader = ScaleReader(data, at=1)  # after the version, which the caller has checked
    try:
        evidence = Evidence(_read_platform(reader), _read_stack(reader))
    except FormatError as error:
        message = f"{_FAILED}: {error.message}"
        raise FormatError(message, reason=error.reason, offset=error.offset) from error
    if reader.remaining:
        message = f"Trailing bytes after legacy VersionedAttestation: {reader.remaining}"
        raise FormatError(message, reason="trailing_data")
    return evidence


def encode_evidence(evidence: Evidence) -> bytes:
    """Encode evidence in SCALE.

    Raises:
        UsageError: If SCALE cannot represent it: a platform that dstack does not define, evidence
            of a pod, events of digest version 2, report data that is not 64 bytes long, text with
            an unpaired surrogate, or a number over 32 bits.
    """
    stack = evidence.stack
    if type(evidence.platform) not in _PLATFORMS:
        raise parts.not_of_dstack("v0", evidence.platform)
    if stack.report_data_payload is not None:
        message = "dstack-pod attestation cannot be represented by the legacy schema"
        raise UsageError(message, reason="not_applicable")
    if evidence.has_v2_event():
        message = "non-V1 runtime events cannot be represented by the legacy schema"
        raise UsageError(message, reason="not_applicable")
    if len(stack.report_data) != 64:
        message = f"stack.report_data: must be 64 bytes, not {len(stack.report_data)}"
        raise UsageError(message, reason="wrong_size")
    kind = type(evidence.platform)
    return b"".join(
        [
            bytes([0, _KINDS.index(kind)]),
            _PLATFORMS[kind].write(evidence.platform),
            _RUNTIME_EVENTS.write(stack.runtime_events),
            stack.report_data,
            scale.encode_text(stack.config),
        ]
    )


def _read_platform(reader: ScaleReader) -> Platform:
    index = reader.u8()
    if index >= len(_KINDS):
        raise FormatError(f"unknown platform {index}", reason="unsupported", offset=reader.at - 1)
    platform: Platform = _PLATFORMS[_KINDS[index]].read(reader)
    return platform


def _read_stack(reader: ScaleReader) -> Stack:
    events = _RUNTIME_EVENTS.read(reader)
    return Stack(reader.take(64), events, reader.text())
