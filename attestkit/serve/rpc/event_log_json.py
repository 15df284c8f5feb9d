"""The text of an event log as answers have it, of which each event is written once.

A log may have 65,536 events, and an answer after each: so the text grows as the log does.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec

from attestkit.event_log import Event, EventLog
from attestkit.event_log.agent_json import dump
from attestkit.serve.rpc.json_codec import escaped
from attestkit.serve.rpc.response_template import SMALL, LongText

__all__ = ["COMPACT", "INDENTED", "LogText", "tcb_info"]


class Style(NamedTuple):
    """How events are written."""

    write: Callable[[Sequence[Event]], str]  # some events, one at least, a comma between them
    comma: str
    trimmed: bool  # the form that goes with a quote: firmware's payloads left out


def _compact(events: Sequence[Event]) -> str:
    return dump(events, preimages=True)[1:-1]


_BEFORE: Final = '{\n  "event_log": [\n    '
_AFTER: Final = "\n  ]\n}"


def _indented(events: Sequence[Event]) -> str:
    text = f'{{"event_log":{dump(events, preimages=False)}}}'
    found: str = msgspec.json.format(text, indent=2)
    return found[len(_BEFORE) : -len(_AFTER)]


COMPACT: Final = Style(_compact, ",", trimmed=True)
"""As GetQuote has it."""

INDENTED: Final = Style(_indented, ",\n    ", trimmed=False)
"""As the TCB info has it."""


class LogText:
    """The text of one log, as long as it grows by runtime events; of another it begins anew."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._known: tuple[tuple[Event, ...], LongText] = (), LongText()

    def of(self, log: EventLog) -> LongText:
        """Return the text of all events of `log`, commas between them.

        The event loop and the device's thread may both be in here: what is known is taken once and
        put back once, so that events and text are always those of one log.
        """
        events = log.events
        known, text = self._known
        new = events[len(known) :]
        if events[: len(known)] != known or not all(event.is_runtime for event in new):
            new, text = (log.trimmed() if self._style.trimmed else log).events, LongText()
        if new:
            written = self._style.write(new)
            text = _appended(text, self._style.comma + written if text.pieces else written)
        self._known = events, text
        return text


def _appended(text: LongText, more: str) -> LongText:
    """Return `text` with `more` behind it, in few pieces.

    A piece is copied when as much has come behind it, or when it is small: of n events that come
    one by one, each is copied about log2(n) times.
    """
    pieces, json, last = [*text.pieces], [*text.json], escaped(more)
    while pieces and len(pieces[-1]) <= max(len(more), SMALL):
        more, last = pieces.pop() + more, json.pop() + last
    return LongText((*pieces, more), (*json, last))


Found: TypeAlias = Mapping[str, bytes | None]


def tcb_info(found: Found, log: LongText, app_compose: str) -> LongText:
    """Return registers and other values, the whole log and app-compose.json as one JSON text.

    It is not Intel's TCB info.

    Args:
        found: What comes first, by name; there is something.
        log: The events, in the style INDENTED.
        app_compose: The text of app-compose.json.
    """
    values = {name: None if value is None else value.hex() for name, value in found.items()}
    head = msgspec.json.format(msgspec.json.encode(values), indent=2).decode("ascii")
    before, after = ("[\n    ", "\n  ]") if log.pieces else ("[", "]")
    compose = msgspec.json.encode(app_compose).decode("utf-8")
    return log.between(
        f'{head[:-2]},\n  "event_log": {before}',
        f'{after},\n  "app_compose": {compose}\n}}',
    )
