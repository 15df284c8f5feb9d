"""What people are shown of an event: its name and the start of its data, both harmless to print."""

from typing import Final, NamedTuple

from attestkit.event_log.event import Event

__all__ = ["Payload", "event_name", "preview", "printable"]

LONGEST: Final = 160  # characters of a payload
LONGEST_NAME: Final = 200
# Types whose data are a UEFI_VARIABLE_DATA (TCG PC Client Platform Firmware Profile, 10.2.6).
_VARIABLES: Final = frozenset({0x80000001, 0x80000002, 0x8000000C, 0x800000E0})
_VARIABLE_NAME: Final = 32  # behind GUID, characters of the name, bytes of the value


class Payload(NamedTuple):
    """The start of an event's data, readable."""

    text: str
    size: int  # bytes of the whole
    note: str = ""
    is_hex: bool = False  # nothing else could be made of it


def printable(text: str, limit: int = 4000) -> str:
    """Return text without control and direction characters, which are shown as their numbers."""
    cut = text[:limit] + (f" ... {len(text)} characters" if len(text) > limit else "")
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in cut)


def preview(payload: bytes) -> Payload:
    """Return the start of a payload: as text if it is some, else in hex."""
    size = len(payload)
    text = _text(payload)
    if text is not None:
        note = f"{size} bytes" if len(text) > LONGEST else ""
        return Payload(text[:LONGEST] + ("..." if note else ""), size, note)
    shown = payload[: LONGEST // 2].hex()
    more = size > LONGEST // 2
    return Payload(shown + ("..." if more else ""), size, f"{size} bytes", is_hex=True)


def _text(payload: bytes) -> str | None:
    """Return a payload as text, if all of it is printable: UTF-8, or UTF-16 as firmware has it."""
    if len(payload) > 8 * LONGEST:
        return None
    head = payload.rstrip(b"\0")
    if not head:
        return None
    try:
        # Two bytes of anything are some letter of UTF-16, so that only ASCII counts.
        if len(head) > 2 and not any(head[1::2]):
            text = (head + b"\0" * (len(head) % 2)).decode("utf-16-le")
            return text if text.isprintable() else None
        text = head.decode("utf-8")
        strings = [part for part in text.split("\0") if part]  # firmware pads between them
    except UnicodeDecodeError:
        return None
    if not all(part.isprintable() for part in strings):
        return None
    return " \N{MIDDLE DOT} ".join(strings)


def event_name(event: Event) -> str:
    """Return an event's name; that of a variable of the firmware is in its data."""
    return printable(_name(event), LONGEST_NAME)


def _name(event: Event) -> str:
    if event.event_type not in _VARIABLES:
        return event.name
    size = 2 * int.from_bytes(event.payload[16:24], "little")
    name = event.payload[_VARIABLE_NAME : _VARIABLE_NAME + min(size, 2 * LONGEST_NAME)]
    return event.name or name.decode("utf-16-le", errors="replace")
