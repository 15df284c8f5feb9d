"""The calls of a backend that are recorded, and their answers and errors as JSON.

Bytes are hex. Of the runtime events an answer has what came behind those of the last answer.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

from attestkit import errors
from attestkit._native import unhex
from attestkit.backends.base import SnpEvidence
from attestkit.backends.recording.event_history import History
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    FormatError,
    QuoteUnavailableError,
    VerificationError,
)
from attestkit.event_log.event import Event

__all__ = [
    "CALLS",
    "LOCK",
    "Answer",
    "Call",
    "Codec",
    "Key",
    "Memory",
    "Scalar",
    "describe",
    "failure_from_json",
    "failure_to_json",
    "from_hex",
    "key_of",
    "missing",
]

Scalar: TypeAlias = str | int | None
Key: TypeAlias = tuple[str, str]  # the call's name, its arguments as JSON

_SHOWN: Final = 128  # characters of an argument: report data in hex are as long
_NAMED: Final = 4  # requests that an error names in full
LOCK: Final = "lock_journal"
"""Written where the journal could not be locked; its argument counts from the last change."""


class Memory:
    """What was read or written so far, as far as later answers build on it."""

    def __init__(self) -> None:
        self.events: tuple[Event, ...] = ()  # written last
        self.history: History = History()  # read last


class Codec(NamedTuple):
    """How one kind of answer is written and read; `decode` raises FormatError."""

    encode: Callable[[Any, Memory], object]
    decode: Callable[[object, Memory], object]
    alone: bool = True  # it says the same wherever it stands


class Call(NamedTuple):
    """A call that is recorded."""

    codec: Codec
    change: bool = False  # afterwards the TEE may answer otherwise
    missing: type[AttestKitError] = errors.BackendError  # where it was not recorded
    settled: bool = False  # no change changes it, so an answer from elsewhere will do


class Answer(NamedTuple):
    """What was answered: a value, or an error that is made anew each time it is raised."""

    value: object
    failure: Callable[[], AttestKitError] | None = None

    def give(self) -> object:
        """Return the value, or raise the error."""
        if self.failure is not None:
            raise self.failure()
        return self.value.events() if isinstance(self.value, History) else self.value


# -- kinds of answers --------------------------------------------------------------------------


def from_hex(found: object, what: str = "answer") -> bytes:
    """Return the bytes of hex text; FormatError names `what` if it is none."""
    data = unhex(found) if isinstance(found, str) else None
    if data is None:
        raise FormatError(f"{what}: not hex")
    return data


def _text(found: object, _: Memory) -> str:
    if not isinstance(found, str):
        raise FormatError("answer: not text")
    return found


def _nothing(found: object, _: Memory) -> None:
    if found is not None:
        raise FormatError("answer: not null")


def _version(found: object, _: Memory) -> int:
    if type(found) is not int or found not in (1, 2):
        raise FormatError("answer: neither 1 nor 2")
    return found


def _snp(found: object, _: Memory) -> SnpEvidence:
    report, certificates = _members(found, "answer", *SnpEvidence._fields)
    return SnpEvidence(from_hex(report, "report"), from_hex(certificates, "certificates"))


def _members(found: object, what: str, *names: str) -> list[Any]:
    """Return the values under `names`, which are all that an object may have."""
    if not isinstance(found, dict) or found.keys() != set(names):
        raise FormatError(f"{what}: not an object of {', '.join(names)}")
    return [found[name] for name in names]


def event_to_json(event: Event) -> dict[str, Scalar]:
    """Return an event, its bytes in hex."""
    return {**event._asdict(), "digest": event.digest.hex(), "payload": event.payload.hex()}


def _event(found: object) -> Event:
    register, kind, digest, name, payload, version = _members(found, "event", *Event._fields)
    if {type(register), type(kind), type(version)} != {int} or not isinstance(name, str):
        raise FormatError("event: a member of another type")
    return Event(
        register, kind, from_hex(digest, "digest"), name, from_hex(payload, "payload"), version
    )


def _events_to_json(events: tuple[Event, ...], memory: Memory) -> object:
    known = memory.events
    keep = len(known) if events is known or events[: len(known)] == known else 0
    memory.events = events
    return {"keep": keep, "add": [event_to_json(event) for event in events[keep:]]}


def _events(found: object, memory: Memory) -> History:
    keep, add = _members(found, "answer", "keep", "add")
    known = memory.history
    if type(keep) is not int or not 0 <= keep <= known.size or not isinstance(add, list):
        raise FormatError("answer: keep is no number of events before, or add no list")
    memory.history = known.then(keep, tuple(map(_event, add)))
    return memory.history


BYTES: Final = Codec(lambda data, _: data.hex(), lambda found, _: from_hex(found))
TEXT: Final = Codec(lambda text, _: text, _text)
NOTHING: Final = Codec(lambda _value, _: None, _nothing)
VERSION: Final = Codec(lambda version, _: version, _version)
SNP: Final = Codec(lambda both, _: {key: part.hex() for key, part in both._asdict().items()}, _snp)
EVENTS: Final = Codec(_events_to_json, _events, alone=False)

CALLS: Final = {
    "get_quote": Call(BYTES, missing=QuoteUnavailableError),
    "get_snp_report": Call(SNP, missing=QuoteUnavailableError),
    "get_quote_response": Call(TEXT, missing=QuoteUnavailableError),
    "read_event_log": Call(BYTES),
    "read_app_compose": Call(BYTES),
    "read_rtmr": Call(BYTES),
    "extend_rtmr": Call(NOTHING, change=True),
    "open_journal": Call(NOTHING, settled=True),
    LOCK: Call(NOTHING),
    "journal_version": Call(VERSION, settled=True),
    "journal_events": Call(EVENTS),
    "journal_emit": Call(NOTHING, change=True),
    "emit_event": Call(NOTHING, change=True),
    "reset": Call(NOTHING, change=True),
}


# -- errors ------------------------------------------------------------------------------------


def failure_to_json(error: AttestKitError) -> dict[str, object]:
    """Return an error of ours: the name of its class, its text, and what else it says."""
    known = next(kind for kind in type(error).__mro__ if kind.__name__ in errors.__all__)
    more = {name: getattr(error, name, None) for name in ("offset", "reason", "steps")}
    return {
        "error": known.__name__,
        "text": error.message if isinstance(error, FormatError) else str(error),
        **{name: value for name, value in more.items() if value not in (None, "", ())},
    }


def failure_from_json(found: Mapping[str, Any]) -> Callable[[], AttestKitError]:
    """Return what makes the error anew.

    Raises:
        FormatError: It is none of ours.
    """
    name, text = found.get("error"), found.get("text")
    reason, offset, steps = found.get("reason", ""), found.get("offset"), found.get("steps", [])
    if name not in errors.__all__ or not isinstance(text, str) or not isinstance(reason, str):
        raise FormatError("error: not one of attestkit's, with its text")
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise FormatError("error: steps are not texts")
    if offset is not None and type(offset) is not int:
        raise FormatError("error: the offset is no number")
    kind: type[AttestKitError] = getattr(errors, name)
    if issubclass(kind, FormatError):
        return lambda: kind(text, offset=offset, reason=reason)
    if issubclass(kind, VerificationError):
        return lambda: kind(text, steps=tuple(steps), reason=reason)
    if issubclass(kind, CollateralError):
        return lambda: kind(text, reason=reason)
    return lambda: kind(text)


# -- requests ----------------------------------------------------------------------------------


def key_of(name: str, arguments: Mapping[str, Scalar]) -> Key:
    """Return what tells one request from others."""
    return name, json.dumps(arguments, sort_keys=True)


def describe(key: Key) -> str:
    """Return a request as people write it: `read_rtmr(3)`; long arguments are cut."""
    name, arguments = key[0], json.loads(key[1])
    if "payload" in arguments:  # of an event the rest follows from these
        shown = [repr(arguments["name"]), arguments["payload"]]
    else:
        shown = sorted((str(one) for one in arguments.values() if one is not None), key=len)
    cut = (text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..." for text in shown if text)
    return f"{name}({', '.join(cut)})"


def missing(key: Key, recorded: list[Key]) -> str:
    """Say what was recorded in place of a request: those of its kind first, a few in full."""
    alike = [describe(other) for other in recorded if other[0] == key[0]]
    names = sorted({other[0] for other in recorded} - {key[0]})
    parts = alike[:_NAMED]
    if more := len(alike) - len(parts):
        parts.append(f"{more} more of {key[0]}")
    return ", ".join(parts + names) or "nothing"
