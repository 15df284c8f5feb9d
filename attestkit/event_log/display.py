"""Event names and data for display, without control characters."""

from typing import Final, NamedTuple

from attestkit._sanitize import printable
from attestkit.event_log.event import Event
from attestkit.event_log.event_types import VARIABLE_TYPES

MAX_PREVIEW: Final = 160  # characters
MAX_NAME: Final = 200  # characters
_VARIABLE_NAME: Final = 32  # offset of the name, after GUID and the two lengths


class Payload(NamedTuple):
    """The start of an event's data, as printable text."""

    text: str
    size: int  # of the whole data, in bytes
    note: str = ""
    is_hex: bool = False  # the data are not text


def preview(payload: bytes) -> Payload:
    """Return the start of a payload: as text if all of it is printable, else in hex."""
    size = len(payload)
    text = _text(payload)
    if text is not None:
        note = f"{size} bytes" if len(text) > MAX_PREVIEW else ""
        return Payload(text[:MAX_PREVIEW] + ("..." if note else ""), size, note)
    shown = payload[: MAX_PREVIEW // 2].hex()
    more = size > MAX_PREVIEW // 2
    return Payload(shown + ("..." if more else ""), size, f"{size} bytes", is_hex=True)


def _text(payload: bytes) -> str | None:
    """Return a payload as text if all of it is printable UTF-8, or UTF-16 with ASCII only."""
    if len(payload) > 8 * MAX_PREVIEW:
        return None
    head = payload.rstrip(b"\0")
    if not head:
        return None
    try:
        # Nearly any two bytes are a character of UTF-16, so only ASCII is recognised.
        if len(head) > 2 and not any(head[1::2]):
            text = (head + b"\0" * (len(head) % 2)).decode("utf-16-le")
            return text if text.isprintable() else None
        text = head.decode("utf-8")
        strings = [part for part in text.split("\0") if part]  # firmware zero-pads strings
    except UnicodeDecodeError:
        return None
    if not all(part.isprintable() for part in strings):
        return None
    return " \N{MIDDLE DOT} ".join(strings)


def event_name(event: Event) -> str:
    """Return an event's name, or the name of the UEFI variable in its data, for display."""
    return printable(_name(event), MAX_NAME)


def _name(event: Event) -> str:
    if event.event_type not in VARIABLE_TYPES:
        return event.name
    size = 2 * int.from_bytes(event.payload[16:24], "little")
    name = event.payload[_VARIABLE_NAME : _VARIABLE_NAME + min(size, 2 * MAX_NAME)]
    return event.name or name.decode("utf-16-le", errors="replace")
