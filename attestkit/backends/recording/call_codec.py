"""The recorded calls of a backend, and the encoding of their results and errors as JSON.

Bytes are hex. Runtime events are encoded as the difference to the result before: a journal returns
all events every time, so that complete copies would need memory quadratic in the size of the file.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias, cast

from attestkit import errors
from attestkit._formats.strict_json import from_hex, string, wrong_json_type
from attestkit._sanitize import shown
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, Platform, Stack
from attestkit.backends.base import SnpEvidence
from attestkit.errors import AttestKitError, BackendError, FormatError, QuoteUnavailableError
from attestkit.event_log.event import Event


class _Difference(NamedTuple):
    """A list of events: the first `keep` events of `before`, followed by `added`."""

    before: "_Difference | None"
    keep: int
    added: tuple[Event, ...]


class _Cache:
    """The last history whose `events` was called, with its result; shared by a file's histories."""

    last: "tuple[EventHistory | None, tuple[Event, ...]]" = None, ()  # one tuple, for thread safety


class EventHistory:
    """The runtime events of one recorded result, as a chain of differences to earlier results.

    Without arguments it is empty. Each difference in the chain, except the last, contributes at
    least one event. So `events` takes time and memory linear in the events returned.
    """

    __slots__ = ("_cache", "_part", "size")

    def __init__(self, part: _Difference | None = None, cache: _Cache | None = None) -> None:
        self._part = part = part or _Difference(None, 0, ())
        self._cache = cache or _Cache()
        self.size: int = part.keep + len(part.added)

    def then(self, keep: int, added: tuple[Event, ...]) -> "EventHistory":
        """Return the next history: the first `keep` events of this one, followed by `added`.

        If that changes nothing, it is this object, so that `events` returns the same tuple.
        """
        if not added and keep == self.size:
            return self
        before: _Difference | None = self._part
        while before is not None and keep <= before.keep:
            before = before.before  # none of its events is kept
        return EventHistory(_Difference(before, keep, added), self._cache)

    def events(self) -> tuple[Event, ...]:
        """Return the events.

        The histories of a file share a cache of one tuple. Repeated calls return the same tuple
        until `events` of another history is called.
        """
        of, found = self._cache.last
        if of is not self:
            end, part, parts = self.size, self._part, []
            while True:
                parts.append(part.added[: end - part.keep])
                end = part.keep
                if part.before is None:
                    break
                part = part.before
            found = tuple(event for own in reversed(parts) for event in own)
            self._cache.last = self, found
        return found


Scalar: TypeAlias = str | int | None
Key: TypeAlias = tuple[str, str]  # the call's name, its arguments as JSON

_SHOWN: Final = 128  # characters of an argument in an error: report data in hex
_NAMED: Final = 4  # calls that an error lists with arguments
LOCK: Final = "lock_journal"
"""A failed attempt to lock the journal; the argument counts attempts since the last change."""


class CodecState:
    """The runtime events of the last result in the file, to which the next result refers.

    `events` are those encoded last, by a recorder; `history` those decoded last, by a replay.
    """

    def __init__(self) -> None:
        self.events: tuple[Event, ...] = ()  # encoded last
        self.history: EventHistory = EventHistory()  # decoded last


class Codec(NamedTuple):
    """Encoder of a kind of result to JSON values, and decoder, which raises FormatError."""

    encode: Callable[[Any, CodecState], object]
    decode: Callable[[object, CodecState], object]
    independent: bool = True  # the encoding does not depend on earlier results


class CallSpec(NamedTuple):
    """Properties of a recorded method: its results, its arguments, its effect on the TEE."""

    codec: Codec  # of its results
    parameters: tuple[str, ...] = ()  # names of its arguments
    changes_state: bool = False  # of the TEE
    not_recorded_error: type[BackendError] = BackendError  # of a replay without such a call
    constant: bool = False  # independent of state changes: a result from any segment is valid


class RecordedResult(NamedTuple):
    """The value of a call or, in `failure`, a function that creates a copy of its error."""

    value: object
    failure: Callable[[], AttestKitError] | None = None

    def get(self) -> object:
        """Return the value, or raise the error."""
        if self.failure is not None:
            raise self.failure()
        return self.value.events() if isinstance(self.value, EventHistory) else self.value


# -- codecs ------------------------------------------------------------------------------------


def _decode_null(found: object, _: CodecState) -> None:
    if found is not None:
        raise wrong_json_type("answer", "null", found)


def _decode_version(found: object, _: CodecState) -> int:
    if type(found) is not int or found not in (1, 2):
        message = f"answer: version must be 1 or 2, not {shown(found)}"
        raise FormatError(message, reason="wrong_value")
    return found


def _decode_snp(found: object, _: CodecState) -> SnpEvidence:
    report, certificates = _members(found, "answer", *SnpEvidence._fields)
    return SnpEvidence(from_hex(report, "report"), from_hex(certificates, "certificates"))


def _encode_platform(platform: Platform, _: CodecState) -> object:
    """Return evidence as hex of a CBOR record (CMW), the encoding that exists for all platforms."""
    return Attestation(Evidence(platform, Stack(bytes(64), (), ""))).to_bytes("cbor").hex()


def _decode_platform(found: object, _: CodecState) -> Platform:
    return Attestation.from_bytes(from_hex(found, "answer")).evidence.platform


def _members(found: object, what: str, *names: str) -> list[Any]:
    """Return the values of the members `names`; FormatError unless `found` has just these members.

    `what` names the object in the error.
    """
    if not isinstance(found, dict):
        raise wrong_json_type(what, "an object", found)
    if found.keys() != set(names):
        text = f"{what}: must have exactly the members {', '.join(names)}"
        unknown = found.keys() > set(names)
        raise FormatError(text, reason="unknown_field" if unknown else "missing")
    return [found[name] for name in names]


def event_to_json(event: Event) -> dict[str, Scalar]:
    """Return the fields of an event, with bytes as hex."""
    return {**event._asdict(), "digest": event.digest.hex(), "payload": event.payload.hex()}


def _decode_event(found: object) -> Event:
    register, kind, digest, name, payload, version = _members(found, "event", *Event._fields)
    if {type(register), type(kind), type(version)} != {int} or not isinstance(name, str):
        raise FormatError("event: its name must be text, its numbers integers", reason="wrong_type")
    return Event(
        register, kind, from_hex(digest, "digest"), name, from_hex(payload, "payload"), version
    )


def _encode_events(events: tuple[Event, ...], state: CodecState) -> object:
    known = state.events
    keep = len(known) if events is known or events[: len(known)] == known else 0
    state.events = events
    return {"keep": keep, "add": [event_to_json(event) for event in events[keep:]]}


def _decode_events(found: object, state: CodecState) -> EventHistory:
    keep, add = _members(found, "answer", "keep", "add")
    known = state.history
    if type(keep) is not int or not 0 <= keep <= known.size or not isinstance(add, list):
        text = f"answer: keep must be 0 to {known.size}, and add a list of events"
        raise FormatError(text, reason="wrong_value")
    state.history = known.then(keep, tuple(map(_decode_event, add)))
    return state.history


BYTES: Final = Codec(lambda data, _: data.hex(), lambda found, _: from_hex(found, "answer"))
TEXT: Final = Codec(lambda text, _: text, lambda found, _: string({"answer": found}, "answer"))
NOTHING: Final = Codec(lambda _value, _: None, _decode_null)
VERSION: Final = Codec(lambda version, _: version, _decode_version)
SNP: Final = Codec(
    lambda both, _: {key: part.hex() for key, part in both._asdict().items()}, _decode_snp
)
PLATFORM: Final = Codec(_encode_platform, _decode_platform)
EVENTS: Final = Codec(_encode_events, _decode_events, independent=False)

_REPORT_DATA: Final = ("report_data",)

CALLS: Final = {
    "get_quote": CallSpec(BYTES, _REPORT_DATA, not_recorded_error=QuoteUnavailableError),
    "get_snp_report": CallSpec(SNP, _REPORT_DATA, not_recorded_error=QuoteUnavailableError),
    "collect_evidence": CallSpec(PLATFORM, _REPORT_DATA, not_recorded_error=QuoteUnavailableError),
    "read_attestation_key": CallSpec(BYTES),
    "get_quote_response": CallSpec(TEXT, _REPORT_DATA, not_recorded_error=QuoteUnavailableError),
    "read_event_log": CallSpec(BYTES),
    "read_app_compose": CallSpec(BYTES),
    "read_rtmr": CallSpec(BYTES, ("register",)),
    "read_event_pcr": CallSpec(BYTES),
    "extend_rtmr": CallSpec(NOTHING, ("register", "digest"), changes_state=True),
    "open_journal": CallSpec(NOTHING, ("version",), constant=True),
    LOCK: CallSpec(NOTHING, ("attempt",)),
    "journal_version": CallSpec(VERSION, constant=True),
    "journal_events": CallSpec(EVENTS),
    "journal_emit": CallSpec(NOTHING, Event._fields, changes_state=True),
    "emit_event": CallSpec(NOTHING, ("name", "payload"), changes_state=True),
    "reset": CallSpec(NOTHING, changes_state=True),
}


# -- errors ------------------------------------------------------------------------------------


def error_to_json(error: AttestKitError) -> dict[str, object]:
    """Return an error as JSON: `error` (its class), `text`, `reason`; if set, `offset`, `path`.

    Raises:
        FormatError: If the error's reason is not one of those of its class.
    """
    known = next(kind for kind in type(error).__mro__ if kind.__name__ in errors.__all__)
    _check_reason(known, error.reason)
    more = {name: getattr(error, name, None) for name in ("offset", "path")}
    return {
        "error": known.__name__,
        "text": error.message if isinstance(error, FormatError) else str(error),
        "reason": error.reason,
        **{name: value for name, value in more.items() if value not in (None, "")},
    }


def error_from_json(found: Mapping[str, Any]) -> Callable[[], AttestKitError]:
    """Return a function that creates a new instance of a recorded error at each call.

    Args:
        found: Members as `error_to_json` makes them; others are ignored.

    Raises:
        FormatError: If class, text, reason or an attribute is not valid.
    """
    name, text, path = found.get("error"), found.get("text"), found.get("path", "")
    reason, offset = found.get("reason"), found.get("offset")
    if name not in errors.__all__:
        text = f"error: unknown class {shown(str(name))}, must be one of attestkit.errors"
        raise FormatError(f"{text}; upgrade attestkit, or record again", reason="wrong_value")
    if not isinstance(text, str) or not isinstance(path, str):
        raise FormatError("error: text and path must be strings", reason="wrong_type")
    if offset is not None and type(offset) is not int:
        raise FormatError("error: offset must be an integer", reason="wrong_type")
    kind: Any = getattr(errors, name)
    _check_reason(kind, reason)
    keywords: dict[str, Any] = {"reason": reason}
    if issubclass(kind, FormatError):
        keywords["offset"] = offset
    elif issubclass(kind, BackendError):
        keywords["path"] = path
    return lambda: cast("AttestKitError", kind(text, **keywords))


def _check_reason(kind: type[AttestKitError], reason: object) -> None:
    """Raise FormatError unless `reason` is one of the reasons of the error class `kind`."""
    if not isinstance(reason, str) or reason not in kind.reasons():
        text = f"error: unknown reason {shown(str(reason))} of {kind.__name__}"
        raise FormatError(text, reason="wrong_value")


# -- calls -------------------------------------------------------------------------------------


def key_of(name: str, arguments: Mapping[str, Scalar]) -> Key:
    """Return a hashable key of a call: its name, and its arguments as JSON (bytes are hex)."""
    return name, json.dumps(arguments, sort_keys=True)


def describe(key: Key) -> str:
    """Return the call as text for errors, such as `read_rtmr(3)`; long arguments are cut."""
    name, arguments = key[0], json.loads(key[1])
    if "payload" in arguments:  # the other fields of an event follow from name and payload
        shown = [repr(arguments["name"]), arguments["payload"]]
    else:
        shown = sorted((str(one) for one in arguments.values() if one is not None), key=len)
    cut = (text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..." for text in shown if text)
    return f"{name}({', '.join(cut)})"


def describe_recorded(key: Key, recorded: list[Key]) -> str:
    """Return the recorded calls for an error text; calls of the method in `key` come first."""
    alike = [describe(other) for other in recorded if other[0] == key[0]]
    names = sorted({other[0] for other in recorded} - {key[0]})
    parts = alike[:_NAMED]
    if more := len(alike) - len(parts):
        parts.append(f"{more} more of {key[0]}")
    return ", ".join(parts + names) or "nothing"
