"""Runtime events: measurements of the guest into RTMR3 after boot, and the lines of their log.

Digests follow the dstack guest agent, in two versions. Version 1 joins name and payload with a
colon, so the events `a:b`, `c` and `a`, `b:c` have the same digest, and an attacker who relays a
log could replace one by the other. Names with a colon are therefore rejected in version 1.
"""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Final

from attestkit._argument_checks import require_bytes, wrong_type
from attestkit._formats.strict_json import decode_strictly
from attestkit._native import unhex
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.event_log.event import (
    RUNTIME_REGISTER,
    Event,
    WireEvent,
    event_from_wire,
    json_string,
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

GPU_ATTESTATION: Final = "gpu-attestation"
"""Name of dstack's boot event about the GPUs."""

RESERVED_NAMES: Final = frozenset(
    {
        "system-preparing",
        "app-id",
        "compose-hash",
        "init-script-hash",
        "gpu-policy-hash",
        GPU_ATTESTATION,
        "instance-id",
        "boot-mr-done",
        "os-image-hash",
        "key-provider",
        "storage-fs",
        "system-ready",
    }
)
"""Names of the agent's boot events, from which verifiers read the identity of an app."""


def runtime_event(name: str, payload: bytes, version: int = 1) -> Event:
    """Return a runtime event of RTMR3, with its digest.

    Args:
        name: Any text; in version 1 without a colon. `RESERVED_NAMES` are allowed here.
        payload: Any bytes.
        version: Digest version, 1 or 2.

    Raises:
        UsageError: If the version is unknown, the name has a lone surrogate or in version 1 a
            colon, or an argument has another type.
    """
    if not isinstance(name, str):
        raise wrong_type("event name", "a string", name)
    require_bytes("event payload", payload)
    if version == 1 and ":" in name:
        raise UsageError(
            f"event name: {shown(name)} has a colon, which makes version 1 digests ambiguous; "
            "use version 2",
            reason="wrong_value",
        )
    digest = runtime_digest(name, payload, version)
    return Event(RUNTIME_REGISTER, RUNTIME_EVENT_TYPE, digest, name, payload, version)


def check_runtime_events(events: Sequence[Event]) -> None:
    """Reject a log whose runtime events are ambiguous.

    Runtime events must be in RTMR3: firmware extends the other registers, partly by digests of
    data that the host chooses, which could be presented as a runtime event of any name. RTMR3 must
    have no other events: an event of another type is authenticated by its digest alone, so a relay
    could hide a runtime event, such as `app-id`, by changing its type.

    Raises:
        VerificationError: If a runtime event is in another register, RTMR3 has an event of another
            type, or the name of an event of version 1 has a colon.
    """
    for index, event in enumerate(events):
        problem = ""
        if event.event_type != RUNTIME_EVENT_TYPE:
            if event.register == RUNTIME_REGISTER and event.event_type != NO_ACTION:
                problem = f"RTMR3 must have only runtime events, not {event.type_name}"
        elif event.register != RUNTIME_REGISTER:
            problem = f"a runtime event must be in RTMR3, not RTMR{event.register}"
        elif event.version == 1 and ":" in event.name:
            problem = "a version 1 name must not have a colon, which makes its digest ambiguous"
        if problem:
            raise VerificationError(f"event {index} {shown(event.name)}: {problem}", reason="event")


def check_v2(wire: WireEvent, index: int) -> None:
    """Check a version 2 runtime event against its preimage and digest; ignore other events.

    An empty digest is accepted, because evidence shortened for a certificate has no digest.

    Args:
        wire: The event as received.
        index: Its index in the log, from 0, for the error.

    Raises:
        VerificationError: If the preimage is missing, not hex or not canonical, or the digest is
            not that of the preimage.
    """
    if wire.event_type != RUNTIME_EVENT_TYPE or wire.version != 2:
        return
    who = f"V2 runtime event {index}"
    if wire.preimage is None:
        raise VerificationError(f"{who} is missing its digest preimage", reason="event")
    preimage = unhex(wire.preimage)
    if preimage is None:
        raise VerificationError(f"{who} has a malformed digest preimage", reason="event")
    if wire.digest and hashlib.sha384(preimage).digest() != wire.digest:
        raise VerificationError(f"{who} digest does not match its preimage", reason="event")
    if preimage != runtime_preimage(wire.event, wire.event_payload, 2):
        message = f"{who} preimage is not the canonical event representation"
        raise VerificationError(message, reason="event")


def runtime_line(event: Event) -> bytes:
    r"""Return a runtime event as a line of the agent's runtime log, with its newline.

    Raises:
        UsageError: If it is not a runtime event.
    """
    if event.event_type != RUNTIME_EVENT_TYPE:
        message = f"runtime log: {event.type_name} is not a runtime event"
        raise UsageError(message, reason="not_applicable")
    version = f',"version":{event.version}' if event.version != 1 else ""
    payload = b64encode(event.payload).decode()
    return f'{{"event":{json_string(event.name)},"payload":"{payload}"{version}}}\n'.encode()


def parse_runtime_lines(data: bytes) -> tuple[Event, ...]:
    r"""Parse the agent's runtime log: one JSON object per line, payloads in base64.

    Blank lines are skipped. The last line may lack its newline.

    Raises:
        FormatError: If a line is malformed, or has an unknown version. The message gives the line
            number, counted from 1, and `offset` is the start of that line.
        UsageError: If `data` is not `bytes`.
    """
    require_bytes("runtime log", data)
    events: list[Event] = []
    offset = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip(b" \t\r"):
            try:
                events.append(_line_event(line, len(events)))
            except FormatError as error:
                message = f"runtime log, line {number}: {error.message}"
                raise FormatError(message, offset=offset, reason=error.reason) from error
        offset += len(line) + 1
    return tuple(events)


def _line_event(line: bytes, index: int) -> Event:
    members = decode_strictly(line)
    if not isinstance(members, dict):
        message = "must be a JSON object"
        raise FormatError(message, reason="wrong_type")
    name, payload = members.get("event"), members.get("payload")
    version = members.get("version", 1)
    if not isinstance(name, str) or not isinstance(payload, str) or type(version) is not int:
        raise FormatError("event and payload must be text, version an integer", reason="wrong_type")
    wire = WireEvent(RUNTIME_REGISTER, RUNTIME_EVENT_TYPE, b"", name, _unbase64(payload), version)
    return event_from_wire(wire, index)


def _unbase64(text: str) -> bytes:
    try:
        payload = b64decode(text, validate=True)
    except ValueError as error:
        raise FormatError("payload is not base64", reason="encoding") from error
    # The decoder ignores unused bits, so require the canonical encoding.
    if b64encode(payload).decode() != text:
        raise FormatError("payload is not canonical base64", reason="not_canonical")
    return payload
