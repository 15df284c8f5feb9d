"""The guest agent's event log: a JSON array, an object per event, bytes in hex.

Keys: `imr` (0 to 3), `event_type`, `digest`, `event`, `event_payload`, and for runtime events of
version 2 also `version` and `preimage`. Unknown keys are passed over, as the agent's own readers
do; a key that comes twice is refused, because readers disagree about which one counts.
"""

from collections.abc import Iterable
from json import JSONDecodeError, JSONDecoder, loads
from typing import NamedTuple, NoReturn

from attestkit._formats.strict_json import check_depth
from attestkit._native import AGENT_ROW, unhex
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError
from attestkit.event_log.event import Event, WireEvent, json_string, runtime_preimage
from attestkit.event_log.event_types import NO_ACTION, RUNTIME_EVENT_TYPE

__all__ = ["CEL_KEYS", "MAX_EVENTS", "MAX_TEXT", "AgentJsonSource", "dump", "parse"]

MAX_TEXT = 1 << 24
"""Characters of the longest text that is read."""

MAX_EVENTS = 65536

CEL_KEYS = frozenset({"recnum", "digests", "content_type"})
"""Members that tell a record of a Canonical Event Log from an event of the agent."""


class AgentJsonSource(NamedTuple):
    """A text that the native core accepted, the packed rows, and what the core computed."""

    text: bytes | str
    rows: bytes
    digests: bytes
    """Those of the events that extend, in their order."""
    regular: bool

    def events(self) -> tuple[Event, ...]:
        """Make the events."""
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
        """Return none: the core leaves texts that are odd to the parser."""
        return ()


class _Doubled(NamedTuple):
    """Stands for an object in which a member comes twice."""

    name: str


def parse(text: str | bytes) -> list[WireEvent]:
    """Read the array; what the events claim is for the caller to check.

    Raises:
        FormatError: The text is not UTF-8 or not JSON, with the offset in bytes of its UTF-8 form;
            or an event is not an object of the keys above, with its place in the array.
        UsageError: `text` is neither `bytes` nor text.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            message = "the event log is not UTF-8"
            raise FormatError(message, offset=error.start, reason="json") from error
    elif not isinstance(text, str):
        raise UsageError("the agent's event log is bytes or text")
    if len(text) > MAX_TEXT:
        raise FormatError("the event log is longer than 16 MiB", reason="too_long")
    check_depth(text)
    try:
        items = _DECODER.decode(text)
    except JSONDecodeError as error:
        # Lone surrogates, which JSON cannot hold either, count as the three bytes they would be.
        offset = len(text[: error.pos].encode(errors="surrogatepass"))
        raise FormatError(f"not JSON: {error.msg}", offset=offset, reason="json") from error
    except RecursionError as error:
        raise FormatError("not an event log: nested too deeply", reason="json") from error
    except ValueError as error:  # a number of thousands of digits, or NaN
        raise FormatError(f"not an event log: {error}", reason="json") from error
    if not isinstance(items, list):
        raise FormatError("an event log is a JSON array", reason="json")
    if len(items) > MAX_EVENTS:
        raise FormatError("the event log has more than 65,536 events", reason="too_many_records")
    return [_event(item, index) for index, item in enumerate(items)]


def _event(item: object, index: int) -> WireEvent:
    if isinstance(item, _Doubled):
        _refuse(index, f"{shown(item.name)} comes twice")
    if not isinstance(item, dict):
        _refuse(index, "not a JSON object")
    if not CEL_KEYS.isdisjoint(item):
        message = "this is a Canonical Event Log (CEL); EventLog.from_cel reads it"
        raise FormatError(message, reason="cel")
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
        _refuse(index, f"{key} must be a whole number")
    return value


def _text(item: dict[str, object], key: str, index: int) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        _refuse(index, f"{key} must be a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(index, f"{key} has a lone surrogate, so it is not Unicode text")
    return value


def _hex(item: dict[str, object], key: str, index: int) -> bytes:
    text = item.get(key)
    value = unhex(text) if isinstance(text, str) else None
    if value is None:
        _refuse(index, f"{key} must be a text of hex digits")
    return value


def _preimage(item: dict[str, object], index: int) -> str | None:
    return None if item.get("preimage") is None else _hex(item, "preimage", index).hex()


def _refuse(index: int, what: str) -> NoReturn:
    raise FormatError(f"event {index}: {what}", reason="event")


def dump(events: Iterable[Event], *, preimages: bool) -> str:
    """Write events as the agent does: compact, keys in its order, digests as the events have them.

    With `preimages`, runtime events of version 2 carry theirs.
    """
    # One loop over plain names: with a call for each event it takes a third longer.
    texts = [
        f'{{"imr":{register},"event_type":{event_type},"digest":"{digest.hex()}",'
        f'"event":{json_string(name) if name else _UNNAMED},"event_payload":"{payload.hex()}"'
        f"{_version_2(name, payload, preimages=preimages) if version == 2 else _VERSION_1}}}"
        for register, event_type, digest, name, payload, version in events
    ]
    return f"[{','.join(texts)}]"


# What is not there in version 1, and most often is all there is in firmware's events.
_VERSION_1, _UNNAMED = "", '""'


def _version_2(name: str, payload: bytes, *, preimages: bool) -> str:
    preimage = f',"preimage":"{runtime_preimage(name, payload, 2).hex()}"' if preimages else ""
    return f',"version":2{preimage}'


def _members(pairs: list[tuple[str, object]]) -> "dict[str, object] | _Doubled":
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return _Doubled(name)
        seen.add(name)
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = JSONDecoder(object_pairs_hook=_members, parse_constant=_no_constant)
