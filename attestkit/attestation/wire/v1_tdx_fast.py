"""Fast decoder for msgpack evidence of a TD, with keys in the order in which agents write them.

msgspec is much faster than the reader in `v1_document`, but less strict: it accepts duplicate keys
and integers that are not in their shortest form. So the result is encoded again, and accepted only
if the bytes are equal. All other evidence is decoded by `v1_document`.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from attestkit.attestation.wire.evidence_parts import Evidence, RuntimeEvent, Stack, Tdx
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.event_log.event import WireEvent

_U8 = Annotated[int, Meta(ge=0, le=0xFF)]
_U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
_Version = Literal[1, 2]


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


class _RuntimeEvent(Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Fields of a `RuntimeEvent`, in the same order."""

    event: str
    payload: bytes
    version: _Version = 1


class _StackData(Struct, forbid_unknown_fields=True, gc=False):
    report_data: list[_U8]
    runtime_events: Annotated[list[_RuntimeEvent], Meta(max_length=MAX_ITEMS)]
    config: str


class _Stack(Struct, forbid_unknown_fields=True, gc=False):
    kind: Literal["dstack"]
    data: _StackData


class _Tail(Struct, forbid_unknown_fields=True, gc=False):
    """The part of a document after the quote: the event log, and the stack."""

    event_log: Annotated[list[_Event], Meta(max_length=MAX_ITEMS)]
    stack: _Stack


_DECODER: Final = msgspec.msgpack.Decoder(_Tail)
_ENCODER: Final = msgspec.msgpack.Encoder()


def decode_evidence(quote: bytes, rest: bytes) -> Evidence | None:
    """Decode evidence; return None if it needs the full reader.

    Args:
        quote: The quote, already decoded.
        rest: The bytes of the document after the quote.
    """
    tail = b"\x82" + rest  # as a map of two entries: `event_log`, and `stack` of the outer map
    try:
        found = _DECODER.decode(tail)
        if _ENCODER.encode(found) != tail:
            return None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    fields, make = msgspec.structs.astuple, tuple.__new__
    log = tuple([make(WireEvent, fields(event)) for event in found.event_log])
    stack = found.stack.data
    events = tuple([make(RuntimeEvent, fields(event)) for event in stack.runtime_events])
    return Evidence(Tdx(quote, log), Stack(bytes(stack.report_data), events, stack.config))
