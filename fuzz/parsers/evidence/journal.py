"""Target: a journal that finds any files in its folder, and any value in its register.

An input is what is in the log, the pending event, the version and the boot id, parted by two bytes
of 0xFF, behind a byte that says which register there is: the fold of the log or a part of it, with
or without what is pending, or another value. A part that is `-` is a file that is missing.
"""

import hashlib
from contextlib import suppress
from typing import Final

from attestkit.errors import FormatError, JournalError, UsageError
from attestkit.event_log import Event
from attestkit.event_log.journal import BOOT_ID, LOG, PENDING, VERSION, ZERO, replay_from
from attestkit.event_log.runtime_events import parse_runtime_lines, runtime_event, runtime_line
from fuzz.parsers.contract import ParserTarget, check, check_error, check_same, obeys
from tests.event_log.journal_rig import Inode, World

__all__ = ["targets"]

_NAMES: Final = (LOG, PENDING, VERSION, BOOT_ID)
_BORDER: Final = b"\xff\xff"
_MISSING: Final = b"-"
_NEW: Final = runtime_event("new", b"\1", 1)
_KINDS: Final = 6  # of registers


def _events_in(data: bytes) -> tuple[Event, ...]:
    with suppress(FormatError):
        return parse_runtime_lines(data[: data.rfind(b"\n") + 1])
    return ()


def _register(kind: int, log: bytes, pending: bytes) -> bytes:
    """Return what is in RTMR3."""
    events, more = _events_in(log), _events_in(pending)
    values = (
        replay_from(ZERO, events),
        replay_from(ZERO, (*events, *more)),
        replay_from(ZERO, events[:-1]),
        replay_from(ZERO, (*events, _NEW)),
        ZERO,
        hashlib.sha384(log).digest(),
    )
    return values[kind % _KINDS]


def _world(data: bytes) -> World:
    """Return the machine that an input says."""
    world = World()
    world.exists = True
    parts = data[1:].split(_BORDER, len(_NAMES) - 1)
    for number, (name, part) in enumerate(zip(_NAMES, parts, strict=False)):
        if part != _MISSING:
            world.names[name] = Inode(-number)
            world.names[name].content = part
    files = [world.names[name].content if name in world.names else b"" for name in (LOG, PENDING)]
    world.register = _register(data[0], *files)
    return world


def _log_of(world: World) -> bytes:
    return world.names[LOG].content if LOG in world.names else b""


def recover(data: bytes) -> tuple[Event, ...]:
    """Return the events of a journal after one more, if that is taken.

    What was there before is held to what is there then.

    Raises:
        JournalError: The log cannot be believed.
    """
    if not data:
        return ()
    world = _world(data)
    before, register = _log_of(world), world.register
    known = _events_in(before)
    try:
        found = world.journal("boot").events()
    except JournalError:
        check_same("a log that is refused is left alone", _log_of(world), before)
        _emit(world)
        raise
    check_same("reading extends nothing", world.register, register)
    check("whole lines stay", _log_of(world).startswith(before[: before.rfind(b"\n") + 1]))
    check("events are left out only all, as another boot's", found[: len(known)] in (known, ()))
    return _emit(world) or found


def _aside(world: World, before: bytes) -> bool:
    """Tell whether a log was put aside, whole."""
    kept = (inode.content for name, inode in world.names.items() if name.startswith(f"{LOG}."))
    return any(content.startswith(before[: before.rfind(b"\n") + 1]) for content in kept)


def _emit(world: World) -> tuple[Event, ...]:
    """Emit an event: it is in register and log, or in neither; return the log if it was taken."""
    before, register = _log_of(world), world.register
    whole = before[: before.rfind(b"\n") + 1]
    try:
        world.journal("boot").emit(_NEW)
    except (JournalError, UsageError) as error:  # the latter where events have another version
        check_error(error, None)
        check_same("a refused event extends nothing", world.register, register)
        check("a refused event loses nothing", _log_of(world).startswith(whole))
        return ()
    check_same("an event is extended once", world.register, replay_from(register, (_NEW,)))
    check("nothing was lost for it", _log_of(world).startswith(whole) or _aside(world, before))
    again = world.journal("boot").events()
    check_same("the log replays to the register", replay_from(ZERO, again), world.register)
    check_same("and ends with it", again[-1], _NEW)
    return again


def samples() -> list[bytes]:
    """Return machines of every kind: sound, interrupted at each step, of another boot, torn."""
    events = [runtime_event(name, b"\0\xff", version) for name in "ab" for version in (1, 2)]
    lines = [runtime_line(event) for event in events]
    log, last = b"".join(lines[:2]), lines[2]
    new = runtime_line(_NEW)
    machines = [
        (0, log, b"-", b"1", b"boot"),
        (0, b"-", b"-", b"-", b"-"),
        (0, log, last, b"1", b"boot"),
        (1, log, last, b"2", b"boot"),
        (1, log + last[:9], last, b"1", b"boot"),
        (0, log + last[:9], b"-", b"1", b"boot"),
        (4, log, last, b"1", b"another"),
        (0, log, b"-", b"1", b"another"),
        (5, log, b"-", b"3", b"boot"),
        (2, log, b"-", b"1\n", b"-"),
        (3, log, new, b"1", b"boot"),
        (1, log, last[:-1], b"1", b"boot"),
    ]
    return [bytes([kind]) + _BORDER.join(files) for kind, *files in machines]


def targets() -> list[ParserTarget]:
    """Return the target of this file."""
    return [ParserTarget("journal", obeys(recover, JournalError), samples, "event_log.dict", 2048)]
