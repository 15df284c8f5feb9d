"""JSON text of an event log, extended incrementally.

A log may have 65,536 events, and a client may request it after each of them. The text therefore
grows with the log, instead of being encoded again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from attestkit.event_log import Event, EventLog
from attestkit.event_log.agent_json import dump
from attestkit.serve.rpc.json_codec import escape
from attestkit.serve.rpc.response_template import SMALL, EscapedText


class Style(NamedTuple):
    """Format of events in a response."""

    write: Callable[[Sequence[Event]], str]  # encodes one or more events, separated by commas
    comma: str
    trimmed: bool  # without the payloads of boot events, as in GetQuote


def _compact(events: Sequence[Event]) -> str:
    return dump(events, preimages=True)[1:-1]


_BEFORE: Final = '{\n  "event_log": [\n    '
_AFTER: Final = "\n  ]\n}"


def _indented(events: Sequence[Event]) -> str:
    text = f'{{"event_log":{dump(events, preimages=False)}}}'
    found: str = msgspec.json.format(text, indent=2)
    return found[len(_BEFORE) : -len(_AFTER)]


COMPACT: Final = Style(_compact, ",", trimmed=True)
"""Style of GetQuote."""

INDENTED: Final = Style(_indented, ",\n    ", trimmed=False)
"""Style of tcb_info in Info."""


class EventLogJson:
    """JSON text of one log.

    New runtime events are appended to the text. After any other change of the log, the text is
    encoded again.
    """

    def __init__(self, style: Style) -> None:
        self._style = style
        self._encoded: tuple[tuple[Event, ...], EscapedText] = (), EscapedText()

    def of(self, log: EventLog) -> EscapedText:
        """Return the text of all events of `log`, separated by commas.

        Thread-safe: events and text are read and stored together.
        """
        events = log.events
        encoded_events, text = self._encoded
        new = events[len(encoded_events) :]
        if events[: len(encoded_events)] != encoded_events or not all(
            event.is_runtime for event in new
        ):
            new, text = (log.trimmed() if self._style.trimmed else log).events, EscapedText()
        if new:
            encoded = self._style.write(new)
            text = _appended(text, self._style.comma + encoded if text.pieces else encoded)
        self._encoded = events, text
        return text


def _appended(text: EscapedText, more: str) -> EscapedText:
    """Return `text` followed by `more`, in few pieces.

    Pieces are joined when they are small or not longer than `more`. Of n events that are appended
    one by one, each is copied about log2(n) times.
    """
    pieces, json, last = [*text.pieces], [*text.json], escape(more)
    while pieces and len(pieces[-1]) <= max(len(more), SMALL):
        more, last = pieces.pop() + more, json.pop() + last
    return EscapedText((*pieces, more), (*json, last))


def tcb_info(found: Mapping[str, bytes | None], log: EscapedText, app_compose: str) -> EscapedText:
    """Return the JSON text of tcb_info in Info: registers and hashes, event log, app-compose.json.

    It is not Intel's TCB info.

    Args:
        found: Registers and hashes by name; not empty. None becomes `null`.
        log: The events in the style INDENTED.
        app_compose: Text of app-compose.json.
    """
    values = {name: None if value is None else value.hex() for name, value in found.items()}
    head = msgspec.json.format(msgspec.json.encode(values), indent=2).decode("ascii")
    before, after = ("[\n    ", "\n  ]") if log.pieces else ("[", "]")
    compose = msgspec.json.encode(app_compose).decode("utf-8")
    return log.between(
        f'{head[:-2]},\n  "event_log": {before}',
        f'{after},\n  "app_compose": {compose}\n}}',
    )
