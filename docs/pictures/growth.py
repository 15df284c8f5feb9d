"""How registers grow: three extends with their real values, and a boot."""

from collections import Counter
from typing import Final

import attestkit
from attestkit.event_log import Event, EventLog
from attestkit.event_log.runtime_events import runtime_event
from docs.pictures.canvas import APP, BAD, MAKER, OURS, PLAIN, SIGNED, SOFT, Box, Canvas, Colours

__all__ = ["boot", "three_extends"]

_EVENTS: Final = (("model-loaded", b"llama"), ("tool", b"search"), ("tool", b"mail"))
_ALTERED: Final = (("model-loaded", b"llama"), ("tool", b"wallet"), ("tool", b"mail"))


def _values(named: tuple[tuple[str, bytes], ...]) -> tuple[list[Event], list[bytes]]:
    """Return the events, and RTMR3 before each and after the last."""
    events = [runtime_event(name, payload) for name, payload in named]
    return events, [EventLog(events[:n]).replay()[3] for n in range(len(events) + 1)]


def three_extends() -> str:
    """Draw RTMR3 over three events; beside it, what one changed event does."""
    events, values = _values(_EVENTS)
    others, wrong = _values(_ALTERED)
    canvas = Canvas(
        660,
        "A register grows: three extends",
        "RTMR3 starts as 48 zero bytes. Each event has a digest, and the register becomes the "
        "SHA-384 of its old value followed by that digest. In a second column the second event is"
        " another: from there on every value differs, and the last is not the one in the quote.",
    )
    canvas.heading(34, "RTMR3 over three events")
    canvas.text(
        (24, 56),
        "new value = SHA-384(old value ‖ digest)",
        anchor="start",
        colour=SOFT,
        mono=True,
        size=13,
    )
    canvas.text((24, 92), "what happened", anchor="start", bold=True)
    canvas.text((212, 92), "the register", anchor="start", bold=True)
    canvas.text((384, 92), "a forged log", anchor="start", bold=True)
    canvas.box(Box(212, 106, 150, 48), f"boot\n`{_first(values[0])}`", PLAIN)
    canvas.box(Box(384, 106, 152, 48), f"replay\n`{_first(wrong[0])}`", PLAIN)
    for number, event in enumerate(events):
        top = 188.0 + 122 * number
        said = canvas.box(Box(24, top, 156, 66), _shown(event, event.digest), APP)
        after = f"after event {number + 1}\n`{_first(values[number + 1])}`"
        _step(canvas, said, canvas.box(Box(212, top + 40, 150, 48), after, OURS))
        same = wrong[number + 1] == values[number + 1]
        forged = canvas.box(
            Box(384, top + 40, 152, 48),
            _shown(others[number], wrong[number + 1]),
            OURS if same else BAD,
            dashed=not same,
        )
        canvas.arrow((forged.top()[0], top - 34), forged.top())
    _judge(canvas, values[3])
    return canvas.svg()


def _first(value: bytes) -> str:
    return f"{value.hex()[:8]}…"


def _shown(event: Event, value: bytes) -> str:
    return f"{event.name}\n`{event.payload.decode()} {_first(value)}`"


def _judge(canvas: Canvas, last: bytes) -> None:
    """Draw what is in the quote, and what becomes of the forgery."""
    quoted = canvas.box(
        Box(212, 572, 150, 62), f"in the quote\n`{_first(last)}`\nsigned", SIGNED, size=14
    )
    canvas.arrow((287, 520), quoted.top())
    canvas.box(Box(384, 572, 152, 62), "refused\nits replay is not\nwhat was signed", BAD, size=14)
    canvas.arrow((460, 520), (460, 572), colour=BAD.line)
    canvas.text((102, 596), "the log is not signed,", size=14, colour=SOFT)
    canvas.text((102, 616), "the register is", size=14, colour=SOFT)


def _step(canvas: Canvas, said: Box, value: Box) -> None:
    """Draw the old value from above and the digest from the left into the new value."""
    x, y = value.top()
    canvas.arrow((x, y - 74), (x, y))
    canvas.arrow((said.x + said.width, y + 14), (value.x, y + 14))


_BOOT: Final = (
    ("TDX module\nmeasures the first pages", MAKER, "MRTD", "before the guest runs"),
    ("firmware (OVMF)\nmemory list, settings,\nsecure boot, ACPI tables", PLAIN, "RTMR0", ""),
    ("firmware's boot manager\nboot loader or kernel", PLAIN, "RTMR1", ""),
    ("the kernel's start\ncommand line, initrd", PLAIN, "RTMR2", ""),
    ("guest agent\napp id, compose hash,\nkey provider", OURS, "RTMR3", ""),
    ("the app\n`tee.emit_event(...)`", APP, "RTMR3", "as long as it runs"),
)


def boot() -> str:
    """Draw what runs when, and which register it goes into."""
    with attestkit.open("simulator", seed=bytes(range(32))) as tee:
        counted = Counter(event.register for event in tee.event_log().events)
    canvas = Canvas(
        732,
        "A boot, and the register that each step goes into",
        "From above: the TDX module measures the firmware into MRTD; the firmware measures its "
        "settings into RTMR0 and what it starts into RTMR1; the kernel's start measures command "
        "line and initrd into RTMR2; the guest agent measures the app into RTMR3, and the app its"
        " own events after it. The simulator's boot has "
        + ", ".join(f"{n} events in RTMR{r}" for r, n in sorted(counted.items()))
        + ".",
    )
    canvas.heading(34, "A boot, from power-on down")
    canvas.note((24, 56), "counts of events are those of the simulator's boot", size=15)
    places: list[Box] = []
    for number, (lines, colours, register, note) in enumerate(_BOOT):
        top = 76.0 + 108 * number
        place = canvas.box(Box(24, top, 232, 76), lines, colours)
        if places:
            canvas.arrow(places[-1].bottom(), place.top())
        places.append(place)
        _into(canvas, place, register, note or f"{counted[number - 1]} events")
    for first, last, text in ((1, 3, "CCEL: the firmware's log"), (4, 5, "the runtime log")):
        x, middle = canvas.brace(506, places[first].y, places[last].bottom()[1])
        canvas.upright((x + 20, middle), text, colour=SOFT, room=320)
    return canvas.svg()


def _into(canvas: Canvas, place: Box, register: str, note: str) -> None:
    colours: Colours = SIGNED
    target = canvas.box(Box(318, place.y + 8, 172, 60), f"{register}\n{note}", colours)
    canvas.arrow(place.right(), target.left())
