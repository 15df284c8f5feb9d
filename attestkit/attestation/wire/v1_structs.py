"""Structs of wire version 1 for msgspec: fast decoders for evidence as attesters encode it.

They read evidence of a TD or of SEV-SNP in CBOR; and the parts of a CMW collection that have many
items: the event log in JSON, the runtime events and a TPM's quote in CBOR. msgspec and cbor2 are
much faster than the reader in `v1_document`, but less strict: they accept duplicate keys and
integers that are not in their shortest form. So JSON is encoded again, and accepted only if the
bytes are equal, and CBOR is checked by the native core before. The functions return None for other
and for malformed evidence, which the full readers then decode or reject.

Certificates and PCR values are mostly the same in all evidence of a machine, so they are cached by
their bytes.
"""

from functools import lru_cache
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from attestkit._formats.cbor import read_canonical
from attestkit._native import unhex
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.errors import FormatError
from attestkit.event_log.event import WireEvent

_KEPT: Final = 64  # decoded parts of each kind
_LARGEST_KEPT: Final = 16_384  # bytes of one; certificates and PCR values have about 5,000
_BEFORE_PCRS: Final = 5  # entries of a quote
_PCR_VALUES: Final = b"\x6apcr_values"  # the key of the PCR values in CBOR

_U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
_Version = Literal[1, 2]
_Pcrs: TypeAlias = tuple[tuple[parts.PcrValue, ...], tuple[bytes, ...]]


# Unknown fields are forbidden, because msgspec skips them recursively, whatever their depth.
class _Event(Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Fields of a `WireEvent`, in the same order."""

    imr: _U32
    event_type: _U32
    digest: bytes
    event: str
    event_payload: bytes
    version: _Version = 1
    preimage: str | None = None


class _JsonEvent(Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Fields of a `WireEvent`, in the same order, with bytes in hex."""

    imr: _U32
    event_type: _U32
    digest: str
    event: str
    event_payload: str
    version: _Version = 1
    preimage: str | None = None


class _RuntimeEvent(Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Fields of a `RuntimeEvent`, in the same order."""

    event: str
    payload: bytes
    version: _Version = 1


_Certificates = Annotated[list[bytes], Meta(max_length=MAX_ITEMS)]
_Events = Annotated[list[_Event], Meta(max_length=MAX_ITEMS)]
_JsonEvents = Annotated[list[_JsonEvent], Meta(max_length=MAX_ITEMS)]
_RuntimeEvents = Annotated[list[_RuntimeEvent], Meta(max_length=MAX_ITEMS)]


class _CborTdxData(Struct, forbid_unknown_fields=True, gc=False):
    quote: bytes
    event_log: _Events


class _CborTdx(Struct, tag_field="kind", tag="tdx", forbid_unknown_fields=True, gc=False):
    data: _CborTdxData


class _CborSnpData(Struct, forbid_unknown_fields=True, gc=False):
    report: bytes
    cert_chain: Annotated[list[bytes], Meta(max_length=MAX_ITEMS)]
    mr_config: str


class _CborSnp(Struct, tag_field="kind", tag="sev-snp", forbid_unknown_fields=True, gc=False):
    data: _CborSnpData


class _CborStackData(Struct, forbid_unknown_fields=True, gc=False):
    report_data: bytes
    runtime_events: _RuntimeEvents
    config: str


class _CborStack(Struct, tag_field="kind", tag="dstack", forbid_unknown_fields=True, gc=False):
    data: _CborStackData


class _CborPodData(_CborStackData, forbid_unknown_fields=True, gc=False):
    report_data_payload: str


class _CborPod(Struct, tag_field="kind", tag="dstack-pod", forbid_unknown_fields=True, gc=False):
    data: _CborPodData


class _PcrValue(Struct, forbid_unknown_fields=True, gc=False):
    """Fields of a `PcrValue`, in the same order."""

    index: _U32
    algorithm: str
    value: bytes


class _TpmEvent(Struct, forbid_unknown_fields=True, gc=False):
    """Fields of a `TpmEventDigest`, in the same order."""

    pcr_index: _U32
    digest: bytes


class _CborTpmQuote(Struct, forbid_unknown_fields=True, gc=False):
    """Fields of a `TpmQuote` before its PCR values."""

    message: bytes
    signature: bytes
    ak_cert: bytes
    platform: Literal["dstack", "gcp", "nitroenclave", "aws-ec2"]  # TPM_PLATFORMS
    event_log: Annotated[list[_TpmEvent], Meta(max_length=MAX_ITEMS)]


class _CborVtpmQuote(Struct, forbid_unknown_fields=True, gc=False):
    """Fields of a `VtpmQuote` before its PCR values; all are present in what attestkit writes."""

    message: bytes
    signature: bytes
    ak_public: bytes
    boot_log: bytes
    ima_log: bytes


class _CborPcrs(Struct, forbid_unknown_fields=True, gc=False):
    """PCR values of a quote, and the certificates of a `VtpmQuote` behind them."""

    pcr_values: Annotated[list[_PcrValue], Meta(max_length=MAX_ITEMS)]
    ak_certificates: _Certificates = []


class _CborDocument(Struct, forbid_unknown_fields=True, gc=False):
    version: Literal[1]
    platform: _CborTdx | _CborSnp
    stack: _CborStack | _CborPod


_JSON_DECODER: Final = msgspec.json.Decoder(_JsonEvents)
_JSON_ENCODER: Final = msgspec.json.Encoder()


def decode_cbor(data: bytes, start: int) -> parts.Evidence | None:
    """Decode evidence in CBOR; return None if it needs the full reader.

    Args:
        data: The document.
        start: Offset in `data` of the value behind its tag.
    """
    try:
        tree = read_canonical(data, start)
        # Without `builtin_types`, text would be accepted for bytes, as base64.
        found = msgspec.convert(tree, _CborDocument, builtin_types=(bytes,))
    except (FormatError, msgspec.ValidationError):
        return None
    platform, stack = found.platform.data, found.stack.data
    payload = stack.report_data_payload if isinstance(stack, _CborPodData) else None
    return parts.Evidence(_platform(platform), _stack(stack, payload))


def decode_json_log(text: bytes) -> tuple[WireEvent, ...] | None:
    """Decode `text`, the event log of a CMW in compact JSON; None if it needs the full reader."""
    try:
        found = _JSON_DECODER.decode(text)
        if _JSON_ENCODER.encode(found) != text:
            return None
    except (msgspec.MsgspecError, UnicodeError):
        return None
    fields, make = msgspec.structs.astuple, tuple.__new__
    events = []
    for imr, event_type, digest_hex, name, payload_hex, version, preimage in map(fields, found):
        digest, payload = unhex(digest_hex), unhex(payload_hex)
        if digest is None or payload is None:
            return None
        event = (imr, event_type, digest, name, payload, version, preimage)
        events.append(make(WireEvent, event))
    return tuple(events)


def decode_runtime_events(data: bytes) -> tuple[parts.RuntimeEvent, ...] | None:
    """Decode `data`, the runtime events of a CMW in CBOR; None if they need the full reader."""
    found: list[_RuntimeEvent] | None = _convert(data, _RuntimeEvents)
    return None if found is None else _runtime_events(found)


def decode_certificates(data: bytes) -> tuple[bytes, ...] | None:
    """Decode `data`, certificates of a CMW in CBOR; None if they need the full reader."""
    return (_certificates if len(data) <= _LARGEST_KEPT else _certificates.__wrapped__)(data)


@lru_cache(_KEPT)
def _certificates(data: bytes) -> tuple[bytes, ...] | None:
    found: list[bytes] | None = _convert(data, _Certificates)
    return None if found is None else tuple(found)


def decode_tpm_quote(data: bytes) -> parts.TpmQuote | None:
    """Decode `data`, a CMW's quote of Google's TPM in CBOR; None if it needs the full reader."""
    before, rest = _split_quote(data, 6)
    found: _CborTpmQuote | None = _convert(before, _CborTpmQuote)
    if found is None or (pcrs := _decode_pcrs(rest)) is None:
        return None
    fields, make = msgspec.structs.astuple, tuple.__new__
    return parts.TpmQuote(
        found.message,
        found.signature,
        pcrs[0],
        found.ak_cert,
        found.platform,
        tuple([make(parts.TpmEventDigest, fields(one)) for one in found.event_log]),
    )


def decode_vtpm_quote(data: bytes) -> parts.VtpmQuote | None:
    """Decode `data`, a CMW's quote of a TPM in CBOR; None if it needs the full reader."""
    before, rest = _split_quote(data, 7)
    found: _CborVtpmQuote | None = _convert(before, _CborVtpmQuote)
    if found is None or (pcrs := _decode_pcrs(rest)) is None:
        return None
    values, certificates = pcrs
    return parts.VtpmQuote(
        found.message,
        found.signature,
        values,
        found.ak_public,
        certificates,
        found.boot_log,
        found.ima_log,
    )


def _split_quote(data: bytes, count: int) -> tuple[bytes, bytes]:
    """Split `data`, a CBOR map of `count` entries, in two: before its PCR values, and the rest.

    In deterministic encoding, short keys come first, so all that differs in each quote precedes the
    PCR values. If the bytes of their key occur inside of an earlier entry, the first map is
    malformed; if they are missing, the second one is.
    """
    if data[:1] != bytes([0xA0 + count]):
        return b"", b""
    before, key, values = data.partition(_PCR_VALUES)
    head, rest = bytes([0xA0 + _BEFORE_PCRS]), bytes([0xA0 + count - _BEFORE_PCRS])
    return head + before[1:], rest + key + values


def _decode_pcrs(data: bytes) -> _Pcrs | None:
    return (_pcrs if len(data) <= _LARGEST_KEPT else _pcrs.__wrapped__)(data)


@lru_cache(_KEPT)
def _pcrs(data: bytes) -> _Pcrs | None:
    found: _CborPcrs | None = _convert(data, _CborPcrs)
    if found is None:
        return None
    fields, make = msgspec.structs.astuple, tuple.__new__
    values = tuple([make(parts.PcrValue, fields(one)) for one in found.pcr_values])
    return values, tuple(found.ak_certificates)


def _convert(data: bytes, kind: object) -> Any:  # noqa: ANN401 - of type `kind`
    """Decode `data` in CBOR into a value of the type `kind`; None if it needs the full reader."""
    try:
        # Without `builtin_types`, text would be accepted for bytes, as base64.
        return msgspec.convert(read_canonical(data, 0), kind, builtin_types=(bytes,))
    except (FormatError, msgspec.ValidationError):
        return None


def _platform(data: _CborTdxData | _CborSnpData) -> parts.Platform:
    if isinstance(data, _CborTdxData):
        return parts.Tdx(data.quote, _log(data.event_log))
    return parts.SevSnp(data.report, tuple(data.cert_chain), data.mr_config)


def _log(events: list[_Event]) -> tuple[WireEvent, ...]:
    fields, make = msgspec.structs.astuple, tuple.__new__
    return tuple([make(WireEvent, fields(event)) for event in events])


def _stack(data: _CborStackData, payload: str | None = None) -> parts.Stack:
    return parts.Stack(data.report_data, _runtime_events(data.runtime_events), data.config, payload)


def _runtime_events(events: list[_RuntimeEvent]) -> tuple[parts.RuntimeEvent, ...]:
    fields, make = msgspec.structs.astuple, tuple.__new__
    return tuple([make(parts.RuntimeEvent, fields(event)) for event in events])
