"""Evidence of a TD in msgpack, written as agents write it: keys in order, shortest forms.

msgspec reads it in a fraction of the time that a walk from field to field takes. It is laxer than
we are, about keys that occur twice and longer forms for one, so what it read is written again: only
if the same bytes come out has nothing been passed over. Everything else is left to the full reader.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from attestkit.attestation.wire.evidence_parts import Evidence, RuntimeEvent, Stack, Tdx
from attestkit.attestation.wire.scale import MAX_ITEMS
from attestkit.event_log.event import WireEvent

__all__ = ["decode"]

_U8 = Annotated[int, Meta(ge=0, le=0xFF)]
_U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
_Version = Literal[1, 2]


# No field may be unknown: msgspec steps over those, however deep they nest, by recursion.
class _Event(Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """The fields of a `WireEvent`, in its order."""

    imr: _U32
    event_type: _U32
    digest: bytes
    event: str
    event_payload: bytes
    version: _Version = 1
    preimage: str | None = None


class _RuntimeEvent(Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """The fields of a `RuntimeEvent`, in its order."""

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
    """What follows a quote: the rest of the platform's fields, and the stack."""

    event_log: Annotated[list[_Event], Meta(max_length=MAX_ITEMS)]
    stack: _Stack


_DECODER: Final = msgspec.msgpack.Decoder(_Tail)
_ENCODER: Final = msgspec.msgpack.Encoder()


def decode(quote: bytes, rest: bytes) -> Evidence | None:
    """Return the evidence with this quote, or None where the full reader must say what `rest` is.

    Args:
        quote: The quote, read already.
        rest: All that follows it in the document.
    """
    tail = b"\x82" + rest  # a map of two: both levels end here
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
