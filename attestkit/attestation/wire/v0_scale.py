"""Evidence in SCALE, wire version 0; agents use it unless an event has version 2."""

import struct

from attestkit.attestation.wire import scale
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
from attestkit.attestation.wire.scale import ScaleReader
from attestkit.errors import FormatError, UsageError
from attestkit.event_log.event import WireEvent

__all__ = ["FIRST_BYTES", "decode_evidence", "encode_evidence"]

FIRST_BYTES = frozenset([0])
# Beginning of nearly every event of a TD: register, type, length of the digest, digest (48 bytes),
# and the first byte of the length of the name.
_EVENT_HEAD = struct.Struct("<IIB48sB")
_FAILED = "Failed to decode legacy VersionedAttestation"


def decode_evidence(data: bytes) -> Evidence:
    """Decode evidence.

    Raises:
        FormatError: If `data` is malformed, or has trailing bytes.
    """
    reader = ScaleReader(data, at=1)  # after the version, which the caller has checked
    try:
        evidence = Evidence(_platform(reader), _stack(reader))
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
        UsageError: If SCALE cannot represent it: evidence of a pod, events of version 2, or report
            data that is not 64 bytes long.
    """
    stack = evidence.stack
    if stack.report_data_payload is not None:
        message = "dstack-pod attestation cannot be represented by the legacy schema"
        raise UsageError(message, reason="not_applicable")
    if evidence.has_v2_event():
        message = "non-V1 runtime events cannot be represented by the legacy schema"
        raise UsageError(message, reason="not_applicable")
    if len(stack.report_data) != 64:
        raise UsageError("stack.report_data must be 64 bytes", reason="wrong_size")
    events = [
        scale.encode_text(event.event) + scale.encode_blob(event.payload)
        for event in stack.runtime_events
    ]
    return b"".join(
        [
            b"\0",
            _platform_bytes(evidence.platform),
            scale.encode_vector(events),
            stack.report_data,
            scale.encode_text(stack.config),
        ]
    )


def _platform(reader: ScaleReader) -> Platform:
    index = reader.u8()
    if index == 0:
        return Tdx(reader.blob(), _event_log(reader))
    if index == 1:
        return GcpTdx(reader.blob(), _event_log(reader), _tpm_quote(reader))
    if index == 2:
        return NitroEnclave(reader.blob())
    if index == 3:
        return SevSnp(reader.blob(), reader.vector(reader.blob), reader.text())
    if index == 4:
        return NitroTpm(reader.blob())
    raise FormatError(f"unknown platform {index}", reason="unsupported", offset=reader.at - 1)


def _stack(reader: ScaleReader) -> Stack:
    def event() -> RuntimeEvent:
        return RuntimeEvent(reader.text(), reader.blob())

    events = reader.vector(event)
    return Stack(reader.fixed(64), events, reader.text())


def _event_log(reader: ScaleReader) -> tuple[WireEvent, ...]:
    data, last = reader.data, len(reader.data) - _EVENT_HEAD.size
    unpack, make = _EVENT_HEAD.unpack_from, tuple.__new__

    def event() -> WireEvent:
        if reader.at > last:
            return field_by_field()
        imr, event_type, digest_size, digest, name_size = unpack(data, reader.at)
        if digest_size != len(digest) << 2:
            return field_by_field()
        reader.at += _EVENT_HEAD.size
        name = ""
        if name_size:
            reader.at -= 1
            name = reader.text()
        return make(WireEvent, (imr, event_type, digest, name, reader.blob(), 1, None))

    def field_by_field() -> WireEvent:
        return WireEvent(reader.u32(), reader.u32(), reader.blob(), reader.text(), reader.blob())

    return reader.vector(event)


def _tpm_quote(reader: ScaleReader) -> TpmQuote:
    def pcr_value() -> PcrValue:
        return PcrValue(reader.u32(), reader.text(), reader.blob())

    def event() -> TpmEvent:
        return TpmEvent(reader.u32(), reader.blob())

    message, signature = reader.blob(), reader.blob()
    values, ak_cert, index = reader.vector(pcr_value), reader.blob(), reader.u8()
    if index >= len(TPM_PLATFORMS):
        raise FormatError(
            f"unknown TPM platform {index}", reason="wrong_value", offset=reader.at - 1
        )
    events = reader.vector(event)
    return TpmQuote(message, signature, values, ak_cert, TPM_PLATFORMS[index], events)


def _platform_bytes(platform: Platform) -> bytes:
    if isinstance(platform, Tdx):
        return b"\0" + scale.encode_blob(platform.quote) + _event_log_bytes(platform.event_log)
    if isinstance(platform, GcpTdx):
        events = _event_log_bytes(platform.event_log)
        return (
            b"\1"
            + scale.encode_blob(platform.quote)
            + events
            + _tpm_quote_bytes(platform.tpm_quote)
        )
    if isinstance(platform, NitroEnclave):
        return b"\2" + scale.encode_blob(platform.nsm_quote)
    if isinstance(platform, SevSnp):
        chain = scale.encode_vector(map(scale.encode_blob, platform.cert_chain))
        return (
            b"\3"
            + scale.encode_blob(platform.report)
            + chain
            + scale.encode_text(platform.mr_config)
        )
    return b"\4" + scale.encode_blob(platform.attestation_doc)


def _event_log_bytes(events: tuple[WireEvent, ...]) -> bytes:
    return scale.encode_vector(
        scale.encode_u32(event.imr)
        + scale.encode_u32(event.event_type)
        + scale.encode_blob(event.digest)
        + scale.encode_text(event.event)
        + scale.encode_blob(event.event_payload)
        for event in events
    )


def _tpm_quote_bytes(quote: TpmQuote) -> bytes:
    values = [
        scale.encode_u32(pcr.number)
        + scale.encode_text(pcr.algorithm)
        + scale.encode_blob(pcr.value)
        for pcr in quote.pcr_values
    ]
    events = [
        scale.encode_u32(event.pcr_index) + scale.encode_blob(event.digest)
        for event in quote.event_log
    ]
    return b"".join(
        [
            scale.encode_blob(quote.message),
            scale.encode_blob(quote.signature),
            scale.encode_vector(values),
            scale.encode_blob(quote.ak_cert),
            bytes([TPM_PLATFORMS.index(quote.platform)]),
            scale.encode_vector(events),
        ]
    )
