"""The event log of the dstack guest agent: a JSON array of one object per event, bytes in hex.

Keys: `imr` (0 to 3), `event_type`, `digest`, `event`, `event_payload`, and for runtime events of
version 2 also `version` and `preimage`. Unknown keys are ignored, as by the agent's own readers. A
duplicate key is an error, because JSON readers differ in which of the two they use.
"""

from collections.abc import Iterable
from json import JSONDecodeError, JSONDecoder, loads
from typing import Any, NamedTuple, NoReturn

from attestkit._argument_checks import utf8, wrong_type
from attestkit._formats.strict_json import byte_offset, check_depth, wrong_json_type
from attestkit._native import AGENT_ROW, unhex
from attestkit._sanitize import shown
from attestkit.errors import FormatError
from attestkit.event_log.event import Event, WireEvent, json_string, runtime_preimage
from attestkit.event_log.event_types import NO_ACTION, RUNTIME_EVENT_TYPE

MAX_TEXT = 1 << 24
"""Maximum number of characters."""

MAX_EVENTS = 65536


CEL_KEYS = frozenset({"recnum", "digests", "content_type"})
"""Members of a record of a Canonical Event Log that an agent event does not have."""


class AgentJsonSource(NamedTuple):
    """An agent's event log as JSON text, and the positions of its events in the text."""

    text: bytes | str
    """The whole JSON text."""
    rows: bytes
    """One row of `AGENT_ROW` for each event: its numbers, and the offsets of its texts."""
    digests: bytes
    """Digests of the events that extend a register, in order, 48 bytes each."""
    regular: bool
    """Whether the runtime events are known to be unambiguous, as `check_runtime_events` checks."""

    def events(self) -> tuple[Event, ...]:
        """Decode the events."""
        text = self.text if isinstance(self.text, bytes) else self.text.encode()
        digests = self.digests
        events = []
        at = 0
        for row in AGENT_ROW.iter_unpack(self.rows):
            register, version, _, escaped, event_type, digest_at, start, size, hex_at, digits = row
            if event_type == NO_ACTION:
                digest = unhex(text[digest_at : digest_at + 96])
            else:
                digest = digests[at : at + 48]
                at += 48
            name = ""
            if escaped:
                name = loads(text[start - 1 : start + size + 1])
            elif size:
                name = text[start : start + size].decode()
            payload = unhex(text[hex_at : hex_at + digits])
            if event_type != RUNTIME_EVENT_TYPE:
                version = 1
            events.append(
                tuple.__new__(Event, (register, event_type, digest, name, payload, version))
            )
        return tuple(events)

    def warnings(self) -> tuple[str, ...]:
        """Return an empty tuple: the native parser accepts only input without warnings.

        All other input is parsed by `parse`.
        """
        return ()


class _DuplicateMember(NamedTuple):
    """Value in place of a decoded JSON object in which the member `name` occurs twice."""

    name: str


def parse(text: str | bytes) -> list[WireEvent]:
    """Parse the array; ranges of registers and types, and sizes of digests, are not checked here.

    Bytes must be UTF-8.

    Raises:
        FormatError: If the text is not UTF-8 or not JSON (offset in bytes of the UTF-8 form), has
            over 16,777,216 characters or 65,536 events, or an event is not an object with the keys
            of the module's docstring (the message gives its index).
        UsageError: If `text` is neither `bytes` nor `str`.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            message = "event log: not UTF-8"
            raise FormatError(message, offset=error.start, reason="encoding") from error
    elif not isinstance(text, str):
        raise wrong_type("event log", "bytes or text", text)
    if len(text) > MAX_TEXT:
        raise FormatError("event log: longer than 16 MiB", reason="too_long")
    check_depth(text)
    try:
        items = _DECODER.decode(text)
    except JSONDecodeError as error:
        message, offset = f"event log: not JSON: {error.msg}", byte_offset(text, error.pos)
        raise FormatError(message, offset=offset, reason="syntax") from error
    except RecursionError as error:
        raise FormatError("event log: nested too deeply", reason="too_deep") from error
    except ValueError as error:  # a number of thousands of digits, or NaN
        raise FormatError(
            "event log: not JSON: NaN, Infinity or a number with too many digits", reason="syntax"
        ) from error
    if not isinstance(items, list):
        raise wrong_json_type("event log", "a JSON array", items)
    if len(items) > MAX_EVENTS:
        raise FormatError("event log: more than 65,536 events", reason="too_many_records")
    return [_event(item, index) for index, item in enumerate(items)]


def _event(item: object, index: int) -> WireEvent:
    if isinstance(item, _DuplicateMember):
        raise FormatError(f"event {index}: {shown(item.name)} occurs twice", reason="duplicate")
    if not isinstance(item, dict):
        raise FormatError(f"event {index}: must be a JSON object", reason="wrong_type")
    if not CEL_KEYS.isdisjoint(item):
        message = "event log: the input is a Canonical Event Log (CEL); read it with from_cel"
        raise FormatError(message, reason="other_log")
    try:
        event_type = number_member(item, "event_type")
        runtime = event_type == RUNTIME_EVENT_TYPE
        return WireEvent(
            number_member(item, "imr"),
            event_type,
            b"" if runtime and "digest" not in item else hex_member(item, "digest"),
            _text(item, "event"),
            hex_member(item, "event_payload"),
            number_member(item, "version") if "version" in item else 1,
            None if item.get("preimage") is None else hex_member(item, "preimage").hex(),
        )
    except FormatError as error:
        raise FormatError(f"event {index}: {error.message}", reason=error.reason) from error


def number_member(members: dict[str, Any], key: str) -> int:
    """Return the integer `members[key]`; FormatError if it is missing or of another type."""
    value = members.get(key)
    if type(value) is not int:  # bool is an int to isinstance
        raise member_error(members, key, "an integer")
    return value


def hex_member(members: dict[str, Any], key: str) -> bytes:
    """Return the bytes of the hex in `members[key]`; FormatError if it is missing or not hex."""
    text = members.get(key)
    if not isinstance(text, str):
        raise member_error(members, key, "a string of hex digits")
    if (value := unhex(text)) is None:
        raise FormatError(f"{key} must be a string of hex digits", reason="encoding")
    return value


def _text(members: dict[str, Any], key: str) -> str:
    value = members.get(key)
    if not isinstance(value, str):
        raise member_error(members, key, "a string")
    utf8(value, key)
    return value


def member_error(members: dict[str, Any], key: str, expected: str) -> FormatError:
    """Return the error for `members[key]`, which is missing or is not `expected`.

    `expected` is what the member must be, in words, such as `a string`.
    """
    return FormatError(
        f"{key} must be {expected}", reason="wrong_type" if key in members else "missing"
    )


def dump(events: Iterable[Event], *, preimages: bool) -> str:
    """Return the events as the agent writes them: a compact JSON array, the keys in its order.

    With `preimages`, runtime events of version 2 have the member `preimage`.
    """
    # A function call per event would take a third longer.
    texts = [
        f'{{"imr":{register},"event_type":{event_type},"digest":"{digest.hex()}",'
        f'"event":{json_string(name) if name else _UNNAMED},"event_payload":"{payload.hex()}"'
        f"{_version_2(name, payload, preimages=preimages) if version == 2 else _VERSION_1}}}"
        for register, event_type, digest, name, payload, version in events
    ]
    return f"[{','.join(texts)}]"


# The JSON of an absent version, and of the empty name that most firmware events have.
_VERSION_1, _UNNAMED = "", '""'


def _version_2(name: str, payload: bytes, *, preimages: bool) -> str:
    preimage = f',"preimage":"{runtime_preimage(name, payload, 2).hex()}"' if preimages else ""
    return f',"version":2{preimage}'


def _members(pairs: list[tuple[str, object]]) -> "dict[str, object] | _DuplicateMember":
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return _DuplicateMember(name)
        seen.add(name)
    return members


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = JSONDecoder(object_pairs_hook=_members, parse_constant=_refuse_constant)
