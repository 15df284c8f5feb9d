"""Runtime events: what the guest measures into RTMR3 after boot, and their log on disk.

The digests are those of the dstack guest agent, in two versions. Version 1 joins name and payload
with a colon, so `a:b` with `c` and `a` with `b:c` have the same digest and whoever relays a log
could shift the border; a version 1 name with a colon is therefore neither made nor believed.
"""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from json import JSONDecodeError, JSONDecoder
from typing import Final

from attestkit._formats.strict_json import check_depth
from attestkit._native import unhex
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.event_log.event import (
    RUNTIME_REGISTER,
    Event,
    WireEvent,
    json_string,
    received,
    runtime_digest,
    runtime_preimage,
)
from attestkit.event_log.event_types import NO_ACTION, RUNTIME_EVENT_TYPE

__all__ = [
    "RESERVED_NAMES",
    "RUNTIME_EVENT_TYPE",
    "check_runtime_events",
    "check_v2",
    "parse_runtime_lines",
    "runtime_digest",
    "runtime_event",
    "runtime_line",
    "runtime_preimage",
]

RESERVED_NAMES: Final = frozenset(
    {
        "system-preparing",
        "app-id",
        "compose-hash",
        "init-script-hash",
        "gpu-policy-hash",
        "gpu-attestation",
        "instance-id",
        "boot-mr-done",
        "os-image-hash",
        "key-provider",
        "storage-fs",
        "system-ready",
    }
)
"""Names of the events of an agent's boot, from which the identity of an app is read."""


def runtime_event(name: str, payload: bytes, version: int = 1) -> Event:
    """Make a runtime event, ready to be extended into RTMR3.

    Args:
        name: Any text; in version 1 without a colon. Names of `RESERVED_NAMES` are allowed here.
        payload: Any bytes.
        version: Digest rule, 1 or 2.

    Raises:
        UsageError: No such version, a colon in a version 1 name, a name that is not Unicode text,
            or an argument of another type.
    """
    if not isinstance(name, str):
        raise UsageError("the name of a runtime event is text")
    if not isinstance(payload, bytes):
        raise UsageError("the payload of a runtime event is bytes")
    if version == 1 and ":" in name:
        raise UsageError(
            f"event name {shown(name)} has a colon, which digests of version 1 cannot tell from "
            "the payload's border; version 2 can"
        )
    digest = runtime_digest(name, payload, version)
    return Event(RUNTIME_REGISTER, RUNTIME_EVENT_TYPE, digest, name, payload, version)


def check_runtime_events(events: Sequence[Event]) -> None:
    """Refuse a log whose runtime events could mean something other than what was measured.

    They are in RTMR3: the digests in the other registers are of firmware's making, some over
    contents that the host chooses, and could be passed off as an event of any name. And nothing
    else is there: of an event of another type only the digest counts, so that whoever relays a log
    could hide any runtime event behind such a type, the boot's own `app-id` for one.

    Raises:
        VerificationError: A runtime event of another register, an event of RTMR3 that is none, or a
            version 1 name with a colon.
    """
    for index, event in enumerate(events):
        if event.event_type != RUNTIME_EVENT_TYPE:
            if event.register == RUNTIME_REGISTER and event.event_type != NO_ACTION:
                raise VerificationError(
                    f"event {index} of RTMR3 is {event.type_name}, not a runtime event: its digest "
                    "alone does not tell what was measured"
                )
            continue
        if event.register != RUNTIME_REGISTER:
            raise VerificationError(
                f"event {index}, {shown(event.name)}, is a runtime event of RTMR{event.register}; "
                "runtime events are in RTMR3"
            )
        if event.version == 1 and ":" in event.name:
            raise VerificationError(
                f"event {index}, {shown(event.name)}, has a colon in a version 1 name: "
                "its digest does not tell the name from the payload"
            )


def check_v2(wire: WireEvent, index: int) -> None:
    """Hold a received version 2 runtime event to its digest and its preimage; pass all others.

    An empty digest is accepted, as evidence that was shortened for transport carries it.

    Args:
        wire: The event as it was received.
        index: Its place in the log, from 0, for the error.

    Raises:
        VerificationError: The preimage is missing, not hex, not the digest's, or not canonical.
    """
    if wire.event_type != RUNTIME_EVENT_TYPE or wire.version != 2:
        return
    who = f"V2 runtime event {index}"
    if wire.preimage is None:
        raise VerificationError(f"{who} is missing its digest preimage")
    preimage = unhex(wire.preimage)
    if preimage is None:
        raise VerificationError(f"{who} has a malformed digest preimage")
    if wire.digest and hashlib.sha384(preimage).digest() != wire.digest:
        raise VerificationError(f"{who} digest does not match its preimage")
    if preimage != runtime_preimage(wire.event, wire.event_payload, 2):
        raise VerificationError(f"{who} preimage is not the canonical event representation")


def runtime_line(event: Event) -> bytes:
    r"""Return a runtime event as a line of the agent's runtime log, ended by a newline.

    Raises:
        UsageError: It is not a runtime event.
    """
    if event.event_type != RUNTIME_EVENT_TYPE:
        raise UsageError(f"{event.type_name} does not belong into a log of runtime events")
    version = f',"version":{event.version}' if event.version != 1 else ""
    payload = b64encode(event.payload).decode()
    return f'{{"event":{json_string(event.name)},"payload":"{payload}"{version}}}\n'.encode()


def parse_runtime_lines(data: bytes) -> tuple[Event, ...]:
    r"""Read the agent's runtime log: a JSON object a line, payloads in base64.

    Blank lines are skipped; no bytes are no events. A last line without its newline counts.

    Raises:
        FormatError: A line is bad; names the line, from 1, and the offset where it starts.
        UsageError: `data` is not `bytes`.
    """
    if not isinstance(data, bytes):
        raise UsageError("a runtime log is bytes")
    events: list[Event] = []
    offset = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip(b" \t\r"):
            try:
                events.append(_line_event(line, len(events)))
            except FormatError as error:
                message = f"runtime log, line {number}: {error.message}"
                raise FormatError(message, offset=offset, reason="runtime_line") from error
        offset += len(line) + 1
    return tuple(events)


def _line_event(line: bytes, index: int) -> Event:
    check_depth(line)
    try:
        members = _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8") from error
    except (JSONDecodeError, RecursionError) as error:
        raise FormatError("not a JSON object") from error
    except FormatError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise FormatError("a number is too long") from error
    if not isinstance(members, dict):
        raise FormatError("not a JSON object")
    name, payload = members.get("event"), members.get("payload")
    version = members.get("version", 1)
    if not isinstance(name, str) or not isinstance(payload, str) or type(version) is not int:
        raise FormatError("event and payload must be texts, version a number")
    wire = WireEvent(RUNTIME_REGISTER, RUNTIME_EVENT_TYPE, b"", name, _unbase64(payload), version)
    return received(wire, index)


def _unbase64(text: str) -> bytes:
    try:
        payload = b64decode(text, validate=True)
    except ValueError as error:
        raise FormatError("the payload is not base64") from error
    # The decoder overlooks stray bits behind the last byte; one payload has one text.
    if b64encode(payload).decode() != text:
        raise FormatError("the payload is not base64 in its one canonical form")
    return payload


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise FormatError("a member comes twice")
    return members


_DECODER = JSONDecoder(object_pairs_hook=_members)
