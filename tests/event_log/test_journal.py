"""A runtime event is in the register and in the log, or in neither, whenever the program dies."""

import errno
from itertools import count

import pytest

from attestkit.errors import BackendError, JournalError, UsageError
from attestkit.event_log import Event
from attestkit.event_log.journal import (
    BOOT_ID,
    LOG,
    PENDING,
    VERSION,
    Journal,
    RegisterAccess,
    replay_from,
)
from attestkit.event_log.runtime_events import runtime_event, runtime_line
from tests.event_log.journal_rig import ZERO, Killed, World

FIRST = runtime_event("first", b"\x01")
SECOND = runtime_event("second", b"")
THIRD = runtime_event("third", b"3" * 300)
NEXT = runtime_event("next", b"after the crash")


def used_world() -> World:
    """Return a world whose journal holds one event already."""
    world = World()
    world.journal().emit(FIRST)
    return world


def check_agreement(world: World, allowed: list[tuple[Event, ...]]) -> tuple[Event, ...]:
    """Start a new program, and require that log and register agree, on one of `allowed`."""
    events = world.journal().events()
    assert replay_from(ZERO, events) == world.register
    assert events in allowed
    return events


def stop_at(world: World, step: int, when: str) -> bool:
    """Emit SECOND and die at a step; False if it was done before."""
    journal = world.journal()
    world.stop, world.when = step, when
    try:
        journal.emit(SECOND)
    except Killed:
        return True
    finally:
        world.stop = None
    return False


@pytest.mark.parametrize("power", ["kept", "lost", "lost, but for removals"])
@pytest.mark.parametrize("when", ["before", "half", "after"])
@pytest.mark.parametrize("fresh", [True, False])
def test_death_at_any_step_costs_at_most_the_event_on_its_way(
    when: str, power: str, *, fresh: bool
) -> None:
    """Whatever the moment, a new program finds both or neither, and can go on."""
    for step in count():
        world = World() if fresh else used_world()
        before = () if fresh else (FIRST,)
        died = stop_at(world, step, when)
        if power != "kept":
            world.lose_power(removals=power != "lost")
        found = check_agreement(world, [before, (*before, SECOND)])
        assert died or found == (*before, SECOND)
        world.journal().emit(NEXT)
        assert check_agreement(world, [(*found, NEXT)])
        assert world.names.keys() <= {LOG, VERSION, BOOT_ID, f"{VERSION}.new", f"{BOOT_ID}.new"}
        if not died:
            assert step >= 7  # pending and its two syncs, register, log and its sync, pending
            return


@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_death_while_deciding_is_no_worse(when: str) -> None:
    """A program that dies while it decides leaves it to the next one."""
    for step in count():
        if not stop_at(used_world(), step, "after"):
            return
        for deciding in count():
            world = used_world()
            assert stop_at(world, step, "after")
            journal = world.journal()
            world.stop, world.when = deciding, when
            try:
                journal.events()
            except Killed:
                died = True
            else:
                died = False
            world.stop = None
            check_agreement(world, [(FIRST,), (FIRST, SECOND)])
            if not died:
                break


def test_without_the_syncs_a_power_loss_would_show() -> None:
    """The syncs are what the promise rests on: leave them out, and some death is not survived."""
    broken = 0
    for step in count():
        world = used_world()
        world.syncs = False
        died = stop_at(world, step, "after")
        world.lose_power()
        broken += replay_from(ZERO, world.journal().events()) != world.register
        if not died:
            break
    assert broken


@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_a_refusal_at_any_step_is_an_error_and_costs_nothing_else(when: str) -> None:
    """A full disk is reported; log and register agree afterwards, for the same program too."""
    for step in count():
        world = used_world()
        journal = world.journal()
        world.how = lambda: OSError(errno.ENOSPC, "No space left on device")
        world.stop, world.when = step, when
        refused = ""
        try:
            journal.emit(SECOND)
        except JournalError as error:
            refused = str(error)
        world.stop = None
        assert not refused or "No space left" in refused
        assert replay_from(ZERO, journal.events()) == world.register
        check_agreement(world, [(FIRST,), (FIRST, SECOND)])
        journal.emit(NEXT)
        assert replay_from(ZERO, journal.events()) == world.register
        if not refused:
            return


# -- deciding ----------------------------------------------------------------------------------


def damaged(log: bytes, pending: bytes | None, register: bytes) -> World:
    """Return a world with that left in it, in its first boot."""
    world = used_world()
    world.register = register
    world.locked = True
    world.write(LOG, log)
    if pending is not None:
        world.write(PENDING, pending)
    world.locked = False
    return world


def after(*events: Event) -> bytes:
    """Return the register after `events`."""
    return replay_from(ZERO, events)


LINE1, LINE2, LINE3 = map(runtime_line, (FIRST, SECOND, THIRD))


@pytest.mark.parametrize("torn", [0, 1, 20, len(LINE2) - 1])
def test_a_torn_last_line_is_rebuilt(torn: int) -> None:
    """What was extended and half appended is appended wholly."""
    world = damaged(LINE1 + LINE2[:torn], LINE2, after(FIRST, SECOND))
    assert check_agreement(world, [(FIRST, SECOND)])
    assert world.read(LOG) == LINE1 + LINE2
    assert world.read(PENDING) is None


@pytest.mark.parametrize("pending", [b"", LINE2[:9], LINE2[:-1], b"not JSON\n", LINE2])
def test_what_was_not_extended_is_dropped(pending: bytes) -> None:
    """A pending event of which the register knows nothing never happened."""
    world = damaged(LINE1, pending, after(FIRST))
    assert check_agreement(world, [(FIRST,)])
    assert world.read(PENDING) is None


@pytest.mark.parametrize(
    ("log", "pending", "register"),
    [
        (LINE1, LINE2, after(THIRD)),
        (LINE1, LINE2[:-1], after(FIRST, SECOND)),
        (LINE1, b"", after(FIRST, SECOND)),
        (LINE1, LINE2, after(FIRST, SECOND, SECOND)),
        (LINE1, None, after(FIRST, SECOND)),
        (LINE1, None, ZERO),
        (LINE1 + LINE2[:9], None, after(FIRST)),
        (LINE1 + LINE3[:20], LINE2, after(FIRST, SECOND)),
    ],
)
def test_what_cannot_be_decided_stays_as_it_is(
    log: bytes, pending: bytes | None, register: bytes
) -> None:
    """Nothing is emitted, nothing is changed, and what is read does not explain the register."""
    world = damaged(log, pending, register)
    with pytest.raises(JournalError):
        world.journal().emit(NEXT)
    assert world.journal().events() == (FIRST,)
    assert (world.read(LOG), world.read(PENDING)) == (log, pending)
    assert world.register == register


def test_the_error_shows_both_values() -> None:
    """Whoever has to find out what happened sees register and replay."""
    world = damaged(LINE1, None, after(THIRD))
    with pytest.raises(JournalError) as caught:
        world.journal().emit(NEXT)
    assert after(THIRD).hex() in str(caught.value)
    assert after(FIRST).hex() in str(caught.value)


@pytest.mark.parametrize("log", [b"{}\n", b"\xff\n", LINE1 + b"[]\n", b'{"event":"a"}\n'])
def test_a_damaged_log_is_not_read_in_part(log: bytes) -> None:
    """A bad line is an error for the whole read."""
    world = damaged(log, None, after(FIRST))
    for call in (world.journal().events, lambda: world.journal().emit(NEXT)):
        with pytest.raises(JournalError, match="damaged"):
            call()


def test_a_log_without_end_is_not_read() -> None:
    """Whatever grew so large is not taken into memory."""
    world = damaged(LINE1, None, after(FIRST))
    world.names[LOG].content = bytes((16 << 20) + 1)
    with pytest.raises(JournalError, match="16777217 bytes"):
        world.journal().events()


# -- boots -------------------------------------------------------------------------------------


def test_the_log_of_another_boot_is_put_aside() -> None:
    """After a reboot the log is empty, and the old one is still there."""
    world = used_world()
    world.register = ZERO
    assert world.journal("boot-2").events() == ()
    assert world.read(LOG) == LINE1  # reading changes nothing
    world.journal("boot-2").emit(SECOND)
    assert world.journal("boot-2").events() == (SECOND,)
    assert world.read(LOG) == LINE2
    assert world.read(f"{LOG}.boot-1") == LINE1
    assert world.read(BOOT_ID) == b"boot-2\n"


@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_death_while_putting_aside_loses_no_log(when: str) -> None:
    """Whatever the moment, the next program puts the rest aside."""
    for step in count():
        world = used_world()
        world.register = ZERO
        journal = world.journal("boot-2")
        world.stop, world.when = step, when
        try:
            journal.emit(SECOND)
        except Killed:
            died = True
        else:
            died = False
        world.stop = None
        journal = world.journal("boot-2")
        assert replay_from(ZERO, journal.events()) == world.register
        journal.emit(NEXT)
        assert replay_from(ZERO, journal.events()) == world.register
        assert world.read(f"{LOG}.boot-1") == LINE1
        if not died:
            return


@pytest.mark.parametrize("register", [after(FIRST), after(FIRST, SECOND), after(THIRD)])
def test_another_boot_with_a_register_that_is_not_zero_is_not_explained(register: bytes) -> None:
    """Somebody extended in this boot, and this log is not of this boot."""
    world = used_world()
    world.register = register
    with pytest.raises(JournalError, match=register.hex()):
        world.journal("boot-2").emit(NEXT)
    assert world.journal("boot-2").events() == ()
    assert world.read(LOG) == LINE1


def test_a_log_without_a_boot_id_is_taken_over() -> None:
    """The agent's own log, which has no boot id beside it, goes on if it explains the register."""
    world = used_world()
    world.names.pop(BOOT_ID)
    assert world.journal().events() == (FIRST,)
    world.journal().emit(SECOND)
    assert check_agreement(world, [(FIRST, SECOND)])
    assert world.read(BOOT_ID) == b"boot-1\n"


def test_an_extend_of_somebody_else_stops_the_log() -> None:
    """A register that moved without the log is never papered over, nor extended once more."""
    world = used_world()
    journal = world.journal()
    assert journal.events() == (FIRST,)
    world.extend(b"\x05" * 48)
    moved, before = world.register, dict(world.names)
    with pytest.raises(JournalError) as caught:
        journal.emit(SECOND)
    assert moved.hex() in str(caught.value)
    assert after(FIRST).hex() in str(caught.value)
    assert (world.register, world.names) == (moved, before)
    assert journal.events() == (FIRST,)


def test_begin_starts_with_what_a_boot_measured() -> None:
    """The simulator's boot: the register holds the events already, the old log is kept."""
    world = used_world()
    world.register = after(SECOND, THIRD)
    journal = world.journal()
    journal.begin("boot-2", (SECOND, THIRD))
    journal.emit(NEXT)
    assert world.journal("boot-2").events() == (SECOND, THIRD, NEXT)
    assert world.read(f"{LOG}.boot-1") == LINE1


# -- the register ------------------------------------------------------------------------------


def test_a_register_that_refuses_leaves_nothing_behind() -> None:
    """The platform's own error comes through, and the event never happened."""
    world = used_world()

    def refuse(digest: bytes) -> None:
        raise BackendError(f"no {len(digest)}")

    journal = Journal(world, RegisterAccess(lambda: world.register, refuse), boot_id="boot-1")
    with pytest.raises(BackendError, match="no 48"):
        journal.emit(SECOND)
    assert world.read(PENDING) is None
    assert journal.events() == (FIRST,)


def test_a_register_that_only_pretends_is_found_out() -> None:
    """An extend that changed nothing is an error, not an event."""
    world = used_world()
    access = RegisterAccess(lambda: world.register, lambda _: None)
    with pytest.raises(BackendError, match="did not change"):
        Journal(world, access, boot_id="boot-1").emit(SECOND)
    check_agreement(world, [(FIRST,)])


def test_a_register_that_fails_too_late_has_extended() -> None:
    """An error after the fact does not hide the fact."""
    world = used_world()

    def late(digest: bytes) -> None:
        world.extend(digest)
        raise BackendError("too late")

    Journal(world, RegisterAccess(lambda: world.register, late), boot_id="boot-1").emit(SECOND)
    check_agreement(world, [(FIRST, SECOND)])


@pytest.mark.parametrize("late", [False, True])
def test_a_log_that_changed_under_the_lock_is_left_alone(*, late: bool) -> None:
    """Whoever wrote to it, half of our event for one: nothing is put behind that; it is pending."""
    world = used_world()

    def extend(digest: bytes) -> None:
        world.extend(digest)
        pending = world.names[PENDING].content
        world.names[LOG].content += pending[: len(pending) // 2]
        if late:
            raise BackendError("too late")

    access = RegisterAccess(lambda: world.register, extend)
    with pytest.raises(JournalError, match=r"wrote to the locked .* do not repeat"):
        Journal(world, access, boot_id="boot-1").emit(SECOND)
    assert PENDING in world.names
    check_agreement(world, [(FIRST, SECOND)])


def test_an_unknown_outcome_is_decided_later() -> None:
    """If the register moved otherwise, the event stays pending and nothing else is emitted."""
    world = used_world()

    def twice(digest: bytes) -> None:
        world.extend(digest)
        world.extend(digest)

    journal = Journal(world, RegisterAccess(lambda: world.register, twice), boot_id="boot-1")
    with pytest.raises(JournalError):
        journal.emit(SECOND)
    assert world.read(PENDING) == LINE2
    with pytest.raises(JournalError):
        world.journal().emit(NEXT)


def test_a_register_that_cannot_be_read_afterwards_leaves_it_pending() -> None:
    """Whether it was extended is not known: that is what is said, and the next use decides."""
    world = used_world()
    broken = False

    def read() -> bytes:
        if broken:
            raise BackendError("the device is gone")
        return world.register

    def extend(digest: bytes) -> None:
        nonlocal broken
        world.extend(digest)
        broken = True

    journal = Journal(world, RegisterAccess(read, extend), boot_id="boot-1")
    with pytest.raises(JournalError, match=r"not known.*device is gone.*pending"):
        journal.emit(SECOND)
    assert world.read(PENDING) == LINE2
    with pytest.raises(BackendError, match="the device is gone"):
        journal.events()
    broken = False
    assert journal.events() == (FIRST, SECOND)
    check_agreement(world, [(FIRST, SECOND)])


# -- alone -------------------------------------------------------------------------------------


def test_an_exclusive_journal_keeps_the_lock_and_looks_once() -> None:
    """Where nobody else may write, reading again costs no system call, and nothing is missed."""
    world = used_world()
    access = RegisterAccess(lambda: world.register, world.extend)
    world.locked = False
    journal = Journal(world, access, boot_id="boot-1", exclusive=True)
    assert journal.events() == (FIRST,)
    assert world.locked
    looks = world.looks
    assert journal.events() == (FIRST,)
    assert world.looks == looks
    journal.emit(SECOND)
    looks = world.looks
    assert journal.events() == (FIRST, SECOND)
    assert world.looks == looks
    world.stop, world.step, world.how = 4, 0, lambda: OSError(errno.EIO, "Input/output error")
    with pytest.raises(JournalError, match="Input/output"):
        journal.emit(THIRD)
    world.stop = None
    assert journal.events() == (FIRST, SECOND, THIRD)  # it was extended, so it is completed
    assert replay_from(ZERO, journal.events()) == world.register


# -- versions ----------------------------------------------------------------------------------


def test_the_version_is_written_once() -> None:
    """The first event decides; a later wish for another version is refused."""
    world = World()
    assert world.journal(version=2).version == 2
    assert world.journal().version == 1
    with pytest.raises(UsageError):
        world.journal(version=2).emit(FIRST)
    world.journal(version=2).emit(runtime_event("a:b", b"", 2))
    assert world.read(VERSION) == b"2"
    assert world.journal().version == 2
    with pytest.raises(UsageError, match="version 2, not 1"):
        world.journal().emit(SECOND)
    with pytest.raises(JournalError, match="version 2, the app asks 1"):
        world.journal(version=1).emit(SECOND)


def test_the_version_of_an_earlier_boot_does_not_count() -> None:
    """Every boot's first event decides anew."""
    world = World()
    world.journal(version=2).emit(runtime_event("a:b", b"", 2))
    world.register = ZERO
    journal = world.journal("boot-2")
    assert journal.version == 1
    journal.emit(FIRST)
    assert journal.events() == (FIRST,)
    assert world.read(VERSION) == b"1"


def test_a_wrong_version_is_refused_before_anything_is_put_aside() -> None:
    """The log of the earlier boot is where it was."""
    world = used_world()
    world.register = ZERO
    with pytest.raises(UsageError, match="version 2"):
        world.journal("boot-2", version=2).emit(SECOND)
    assert world.read(LOG) == LINE1


def test_a_version_that_is_none_is_an_error() -> None:
    """Somebody else's file is not guessed at."""
    world = used_world()
    world.locked = True
    world.write(VERSION, b"three")
    world.locked = False
    with pytest.raises(JournalError, match="neither 1 nor 2"):
        world.journal().emit(SECOND)
