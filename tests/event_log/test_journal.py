"""After any crash, a runtime event is in both the register and the log, or in neither."""

import errno
from collections.abc import Callable
from functools import partial
from itertools import count

import pytest

from attestkit.errors import BackendError, JournalError, UsageError
from attestkit.event_log import Event
from attestkit.event_log.journal import (
    BOOT_ID,
    LOG,
    PENDING,
    VERSION,
    replay_from,
)
from attestkit.event_log.runtime_events import runtime_event, runtime_line
from tests.event_log.journal_rig import ZERO, Killed, World
from tests.raising import raises
from tests.runner.cases import every_case

FIRST = runtime_event("first", b"\x01")
SECOND = runtime_event("second", b"")
THIRD = runtime_event("third", b"3" * 300)
NEXT = runtime_event("next", b"after the crash")


def used_world() -> World:
    """Return a world whose journal contains one event."""
    world = World()
    world.journal().emit(FIRST)
    return world


def check_agreement(world: World, allowed: list[tuple[Event, ...]]) -> tuple[Event, ...]:
    """Start a new process; require that log and register agree on one of `allowed`."""
    events = world.journal().events()
    assert replay_from(ZERO, events) == world.register
    assert events in allowed
    return events


def stop_at(world: World, step: int, when: str, action: Callable[[], object]) -> bool:
    """Run `action` and stop at a step; return False if it finished before."""
    world.stop, world.when = step, when
    try:
        action()
    except Killed:
        return True
    finally:
        world.stop = None
    return False


def emit_and_stop_at(world: World, step: int, when: str) -> bool:
    """Emit SECOND and stop at a step; return False if it finished before."""
    journal = world.journal()
    return stop_at(world, step, when, lambda: journal.emit(SECOND))


@every_case("power", ["kept", "lost", "lost, but for removals"])
@every_case("when", ["before", "half", "after"])
@every_case("fresh", [True, False])
def test_emit_killed_at_any_step_recovers_consistently(
    when: str, power: str, *, fresh: bool
) -> None:
    """A new process finds the event in register and log or in neither, and can emit."""
    for step in count():
        world = World() if fresh else used_world()
        before = () if fresh else (FIRST,)
        died = emit_and_stop_at(world, step, when)
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
def test_recovery_killed_at_any_step_recovers_consistently(when: str) -> None:
    """A process killed during recovery leaves recovery to the next one."""
    for step in count():
        if not emit_and_stop_at(used_world(), step, "after"):
            return
        for deciding in count():
            world = used_world()
            assert emit_and_stop_at(world, step, "after")
            died = stop_at(world, deciding, when, world.journal().events)
            check_agreement(world, [(FIRST,), (FIRST, SECOND)])
            if not died:
                break


def test_emit_without_syncs_loses_consistency_at_power_loss() -> None:
    """Without the syncs some power loss is inconsistent: the tests detect missing syncs."""
    broken = 0
    for step in count():
        world = used_world()
        world.syncs = False
        died = emit_and_stop_at(world, step, "after")
        world.lose_power()
        broken += replay_from(ZERO, world.journal().events()) != world.register
        if not died:
            break
    assert broken


@pytest.mark.parametrize("when", ["before", "half", "after"])
def test_emit_with_full_disk_at_any_step_keeps_consistency(when: str) -> None:
    """A full disk is reported, and log and register agree for this and for a new process."""
    for step in count():
        world = used_world()
        journal = world.journal()
        world.make_error = lambda: OSError(errno.ENOSPC, "No space left on device")
        world.stop, world.when = step, when
        error_found: JournalError | None = None
        try:
            journal.emit(SECOND)
        except JournalError as error:
            error_found = error
        world.stop = None
        if error_found is not None:
            assert error_found.reason in {"unwritable", "not_recorded"}
            assert isinstance(error_found.__cause__, OSError)
            assert error_found.__cause__.errno == errno.ENOSPC
        assert replay_from(ZERO, journal.events()) == world.register
        check_agreement(world, [(FIRST,), (FIRST, SECOND)])
        journal.emit(NEXT)
        assert replay_from(ZERO, journal.events()) == world.register
        if error_found is None:
            return


# -- recovery ----------------------------------------------------------------------------------


def world_with(log: bytes, pending: bytes | None, register: bytes) -> World:
    """Return a world in its first boot with this log, pending event and register."""
    world = used_world()
    world.register = register
    world.locked = True
    world.write(LOG, log)
    if pending is not None:
        world.write(PENDING, pending)
    world.locked = False
    return world


def register_after(*events: Event) -> bytes:
    """Return the register after `events`."""
    return replay_from(ZERO, events)


LINE1, LINE2, LINE3 = map(runtime_line, (FIRST, SECOND, THIRD))


@every_case("torn", [0, 1, 20, len(LINE2) - 1])
def test_recovery_of_torn_line_completes_it(torn: int) -> None:
    """An extended event whose line was partly appended is appended completely."""
    world = world_with(LINE1 + LINE2[:torn], LINE2, register_after(FIRST, SECOND))
    assert check_agreement(world, [(FIRST, SECOND)])
    assert world.read(LOG) == LINE1 + LINE2
    assert world.read(PENDING) is None


@every_case("pending", [b"", LINE2[:9], LINE2[:-1], b"not JSON\n", LINE2])
def test_recovery_of_unextended_pending_event_drops_it(pending: bytes) -> None:
    """A pending event that the register does not contain is dropped."""
    world = world_with(LINE1, pending, register_after(FIRST))
    assert check_agreement(world, [(FIRST,)])
    assert world.read(PENDING) is None


@every_case(
    ("log", "pending", "register"),
    [
        (LINE1, LINE2, register_after(THIRD)),
        (LINE1, LINE2[:-1], register_after(FIRST, SECOND)),
        (LINE1, b"", register_after(FIRST, SECOND)),
        (LINE1, LINE2, register_after(FIRST, SECOND, SECOND)),
        (LINE1, None, register_after(FIRST, SECOND)),
        (LINE1, None, ZERO),
        (LINE1 + LINE2[:9], None, register_after(FIRST)),
        (LINE1 + LINE3[:20], LINE2, register_after(FIRST, SECOND)),
    ],
)
def test_recovery_of_inconsistent_state_changes_nothing(
    log: bytes, pending: bytes | None, register: bytes
) -> None:
    """If register, log and pending event disagree, nothing is emitted and nothing is changed."""
    world = world_with(log, pending, register)
    with raises(JournalError, "damaged", "mismatch"):
        world.journal().emit(NEXT)
    assert world.journal().events() == (FIRST,)
    assert (world.read(LOG), world.read(PENDING)) == (log, pending)
    assert world.register == register


def test_emit_mismatch_error_has_both_values() -> None:
    """The error contains the register and the replayed value."""
    world = world_with(LINE1, None, register_after(THIRD))
    with raises(
        JournalError, "mismatch", expected=register_after(FIRST), actual=register_after(THIRD)
    ):
        world.journal().emit(NEXT)


@every_case("log", [b"{}\n", b"\xff\n", LINE1 + b"[]\n", b'{"event":"a"}\n'])
def test_read_of_damaged_log_fails(log: bytes) -> None:
    """One malformed line is an error for the whole log."""
    world = world_with(log, None, register_after(FIRST))
    for call in (world.journal().events, lambda: world.journal().emit(NEXT)):
        with raises(JournalError, "damaged"):
            call()


def test_read_of_oversized_log_fails() -> None:
    """A log over the limit of size is not loaded."""
    world = world_with(LINE1, None, register_after(FIRST))
    world.names[LOG].content = bytes((16 << 20) + 1)
    with raises(JournalError, "too_large"):
        world.journal().events()


# -- reboots -----------------------------------------------------------------------------------


def test_emit_after_reboot_archives_previous_log() -> None:
    """After a reboot the log is empty, and the previous log is kept under its boot id."""
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
def test_archiving_killed_at_any_step_is_completed(when: str) -> None:
    """If a process is killed while it archives a log, the next one completes it."""
    for step in count():
        world = used_world()
        world.register = ZERO
        journal = world.journal("boot-2")
        died = stop_at(world, step, when, partial(journal.emit, SECOND))
        journal = world.journal("boot-2")
        assert replay_from(ZERO, journal.events()) == world.register
        journal.emit(NEXT)
        assert replay_from(ZERO, journal.events()) == world.register
        assert world.read(f"{LOG}.boot-1") == LINE1
        if not died:
            return


@pytest.mark.parametrize(
    "register", [register_after(FIRST), register_after(FIRST, SECOND), register_after(THIRD)]
)
def test_emit_after_reboot_with_nonzero_register_fails(register: bytes) -> None:
    """A register extended in this boot does not match a log of an earlier boot."""
    world = used_world()
    world.register = register
    with raises(JournalError, "mismatch", expected=ZERO, actual=register):
        world.journal("boot-2").emit(NEXT)
    assert world.journal("boot-2").events() == ()
    assert world.read(LOG) == LINE1


def test_emit_after_foreign_extend_fails() -> None:
    """If another process extended the register, nothing is logged or extended."""
    world = used_world()
    journal = world.journal()
    assert journal.events() == (FIRST,)
    world.extend(b"\x05" * 48)
    moved, before = world.register, dict(world.names)
    with raises(JournalError, "mismatch", expected=register_after(FIRST), actual=moved):
        journal.emit(SECOND)
    assert (world.register, world.names) == (moved, before)
    assert journal.events() == (FIRST,)


# -- the register ------------------------------------------------------------------------------


def test_emit_with_unchanged_register_fails() -> None:
    """An extend that leaves the register unchanged is an error."""
    world = used_world()
    with raises(BackendError, "register_unchanged"):
        world.journal(extend=lambda _: None).emit(SECOND)
    check_agreement(world, [(FIRST,)])


def test_emit_with_extend_failing_after_the_fact_records_event() -> None:
    """If an extend raises although the register changed, the event is recorded."""
    world = used_world()

    def late(digest: bytes) -> None:
        world.extend(digest)
        raise BackendError("too late", reason="io_error")

    world.journal(extend=late).emit(SECOND)
    check_agreement(world, [(FIRST, SECOND)])


@pytest.mark.parametrize("late", [False, True])
def test_emit_with_log_changed_under_lock_stays_pending(*, late: bool) -> None:
    """If the log changed during an emit, nothing is appended and the event stays pending."""
    world = used_world()

    def extend(digest: bytes) -> None:
        world.extend(digest)
        pending = world.names[PENDING].content
        world.names[LOG].content += pending[: len(pending) // 2]
        if late:
            raise BackendError("too late", reason="io_error")

    with raises(JournalError, "not_recorded"):
        world.journal(extend=extend).emit(SECOND)
    assert PENDING in world.names
    check_agreement(world, [(FIRST, SECOND)])


def test_events_with_unreadable_pending_event_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log without an event of RTMR3 is never returned, not even if no file can be opened."""
    world = used_world()

    def read(name: str) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", name)

    def extend(digest: bytes) -> None:
        world.extend(digest)
        world.stop = world.step  # the append fails
        world.make_error = lambda: OSError(errno.EMFILE, "Too many open files")

    journal = world.journal(extend=extend)
    with raises(JournalError, "not_recorded"):
        journal.emit(SECOND)
    with monkeypatch.context() as patch:
        patch.setattr(world, "read", read)
        with raises(JournalError, "not_recorded"):
            journal.events()
    assert journal.events() == (FIRST, SECOND)


def test_emit_with_unexpected_register_value_stays_pending() -> None:
    """If the register has an unexpected value, the event stays pending and nothing is emitted."""
    world = used_world()

    def extend_twice(digest: bytes) -> None:
        world.extend(digest)
        world.extend(digest)

    journal = world.journal(extend=extend_twice)
    with raises(JournalError, "mismatch"):
        journal.emit(SECOND)
    assert world.read(PENDING) == LINE2
    with raises(JournalError, "mismatch"):
        world.journal().emit(NEXT)


def test_emit_with_unreadable_register_is_resolved_at_next_use() -> None:
    """If the register cannot be read after an extend, the next use resolves the event."""
    world = used_world()
    broken = False

    def read() -> bytes:
        if broken:
            raise BackendError("device lost", reason="io_error")
        return world.register

    def extend(digest: bytes) -> None:
        nonlocal broken
        world.extend(digest)
        broken = True

    journal = world.journal(read=read, extend=extend)
    with raises(JournalError, "outcome_unknown"):
        journal.emit(SECOND)
    assert world.read(PENDING) == LINE2
    with raises(BackendError, "io_error"):
        journal.events()
    broken = False
    assert journal.events() == (FIRST, SECOND)
    check_agreement(world, [(FIRST, SECOND)])


# -- exclusive use -----------------------------------------------------------------------------


def test_exclusive_journal_reads_files_once() -> None:
    """With exclusive use, reading again makes no system call and misses no event."""
    world = used_world()
    journal = world.journal(exclusive=True)
    assert journal.events() == (FIRST,)
    assert world.locked
    accesses = world.accesses
    assert journal.events() == (FIRST,)
    assert world.accesses == accesses
    journal.emit(SECOND)
    accesses = world.accesses
    assert journal.events() == (FIRST, SECOND)
    assert world.accesses == accesses
    world.stop, world.step, world.make_error = (
        4,
        0,
        lambda: OSError(errno.EIO, "Input/output error"),
    )
    with raises(JournalError, "not_recorded"):
        journal.emit(THIRD)
    world.stop = None
    assert journal.events() == (FIRST, SECOND, THIRD)  # it was extended, so it is completed
    assert replay_from(ZERO, journal.events()) == world.register


# -- versions ----------------------------------------------------------------------------------


def test_emit_version_is_fixed_by_first_event() -> None:
    """The first event fixes the version; another version is rejected."""
    world = World()
    assert world.journal(version=2).version == 2
    assert world.journal().version == 1
    with raises(UsageError, "conflict"):
        world.journal(version=2).emit(FIRST)
    world.journal(version=2).emit(runtime_event("a:b", b"", 2))
    assert world.read(VERSION) == b"2"
    assert world.journal().version == 2
    with raises(UsageError, "conflict"):
        world.journal().emit(SECOND)
    with raises(JournalError, "event_version"):
        world.journal(version=1).emit(SECOND)


def test_emit_after_reboot_with_wrong_version_does_not_archive() -> None:
    """A version conflict leaves the log of the earlier boot in place."""
    world = used_world()
    world.register = ZERO
    with raises(UsageError, "conflict"):
        world.journal("boot-2", version=2).emit(SECOND)
    assert world.read(LOG) == LINE1


def test_emit_with_invalid_version_file_fails() -> None:
    """An unknown content of the version file is an error."""
    world = used_world()
    world.locked = True
    world.write(VERSION, b"three")
    world.locked = False
    with raises(JournalError, "damaged"):
        world.journal().emit(SECOND)
