"""The event log of the dstack guest agent: a JSON array of one object per event, bytes in hex.

Keys: `imr` (0 to 3), `event_type`, `digest`, `event`, `event_payload`, and for runtime events of
version 2 also `version` and `preimage`. Unknown keys are ignored, as by the agent's own readers. A
duplicate key is an error, because JSON readers differ in which of the two they use.
"""

from collections.abc import Iterable
from json import loads
from typing import NamedTuple, NoReturn

from attestkit._argument_checks import utf8, wrong_type
from attestkit._formats.strict_json import byte_offset, check_depth, decode_at
from attestkit._native import AGENT_ROW, unhex
from attestkit._reasons import FormatReason
from attestkit.errors import FormatError
from attestkit.event_log.event import Event, WireEvent, json_string, runtime_preimage
from attestkit.event_log.event_types import NO_ACTION, RUNTIME_EVENT_TYPE

MAX_TEXT = 1 << 24
"""Maximum number of characters."""

MAX_EVENTS = 65536

_BLANKS = " \t\r\n"

CEL_KEYS = frozenset({"recnum", "digests", "content_type"})
"""Members of a record of a Canonical Event Log that an agent event does not have."""


class AgentJsonSource(NamedTuple):
    """Agent's event log as JSON text, with the events that the native core found in the text."""

    text: bytes | str
    rows: bytes
    digests: bytes
    """Digests of the events that extend a register, in order, 48 bytes each."""
    regular: bool

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


def parse(text: str | bytes) -> list[WireEvent]:
    """Parse the array; registers, types and digests are not checked here.

    Raises:
        FormatError: If the text is not UTF-8 or not JSON (offset in bytes of the UTF-8 form), or
            an event is not an object with the keys above (the message gives its index).
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
    start = len(text) - len(text.lstrip(_BLANKS))
    try:
        items, end = decode_at(text, start)
    except FormatError as error:
        message = f"event log: {error.message}"
        raise FormatError(message, offset=error.offset, reason=error.reason) from error
    if text[end:].strip(_BLANKS):
        message = "event log: not JSON: Extra data"
        raise FormatError(message, reason="syntax", offset=byte_offset(text, end))
    if not isinstance(items, list):
        raise FormatError("event log: must be a JSON array", reason="wrong_type")
    if len(items) > MAX_EVENTS:
        raise FormatError("event log: more than 65,536 events", reason="too_many_records")
    return [_event(item, index) for index, item in enumerate(items)]


def _event(item: object, index: int) -> WireEvent:
    if not isinstance(item, dict):
        _refuse(index, "must be a JSON object", "wrong_type")
    if not CEL_KEYS.isdisjoint(item):
        message = "event log: the input is a Canonical Event Log (CEL); read it with from_cel"
        raise FormatError(message, reason="other_log")
    event_type = _number(item, "event_type", index)
    runtime = event_type == RUNTIME_EVENT_TYPE
    return WireEvent(
        _number(item, "imr", index),
        event_type,
        b"" if runtime and "digest" not in item else _hex(item, "digest", index),
        _text(item, "event", index),
        _hex(item, "event_payload", index),
        _number(item, "version", index) if "version" in item else 1,
        _preimage(item, index),
    )


def _number(item: dict[str, object], key: str, index: int) -> int:
    value = item.get(key)
    if type(value) is not int:  # bool is an int to isinstance
        _refuse_value(item, key, index, "an integer")
    return value


def _text(item: dict[str, object], key: str, index: int) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        _refuse_value(item, key, index, "a string")
    utf8(value, f"event {index}: {key}")
    return value


def _hex(item: dict[str, object], key: str, index: int) -> bytes:
    text = item.get(key)
    if not isinstance(text, str):
        _refuse_value(item, key, index, "a string of hex digits")
    value = unhex(text)
    if value is None:
        _refuse(index, f"{key} must be a string of hex digits", "encoding")
    return value


def _preimage(item: dict[str, object], index: int) -> str | None:
    return None if item.get("preimage") is None else _hex(item, "preimage", index).hex()


def _refuse_value(item: dict[str, object], key: str, index: int, expected: str) -> NoReturn:
    _refuse(index, f"{key} must be {expected}", "wrong_type" if key in item else "missing")


def _refuse(index: int, message: str, reason: FormatReason) -> NoReturn:
    raise FormatError(f"event {index}: {message}", reason=reason)


def dump(events: Iterable[Event], *, preimages: bool) -> str:
    """Return the events as the agent writes them: compact, with the keys in its order.

    With `preimages`, runtime events of version 2 have their preimages.
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
