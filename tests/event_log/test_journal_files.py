"""The journal on disk uses the agent's file names, modes and lock; MemoryJournal uses none."""

import contextlib
import errno
import os
import re
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit.errors import BackendError, JournalError, UsageError
from attestkit.event_log.journal import (
    BOOT_ID,
    LOCK,
    LOG,
    PENDING,
    VERSION,
    Journal,
    MemoryJournal,
    RegisterAccess,
    replay_from,
)
from attestkit.event_log.journal_files import MAX_FILE_SIZE, QUEUE, OsFolder
from attestkit.event_log.runtime_events import runtime_event, runtime_line
from tests.event_log.journal_rig import ZERO, Register
from tests.raising import raises
from tests.runner.cases import every_case

FIRST = runtime_event("first", b"\x01")
SECOND = runtime_event("second", b"")
THIRD = runtime_event("third", b"3" * 300)
LINE1, LINE2 = map(runtime_line, (FIRST, SECOND))


def journal_in(folder: Path, register: Register) -> Journal:
    """Return a journal on the disk."""
    return Journal(OsFolder(folder, LOCK), register.access, boot_id="boot-1")


def test_journal_files_match_the_agents(tmp_path: Path) -> None:
    """Names, content and modes match the agent's log."""
    folder = tmp_path / "run" / "log"
    register = Register()
    journal = journal_in(folder, register)
    journal.emit(FIRST)
    journal.emit(SECOND)
    found = {path.name: path for path in folder.iterdir()}
    assert sorted(found) == sorted([LOG, VERSION, BOOT_ID, LOCK, QUEUE])
    assert {oct(path.stat().st_mode & 0o777) for path in found.values()} == {"0o600"}
    assert found[LOG].read_bytes() == LINE1 + LINE2
    assert found[VERSION].read_bytes() == b"1"
    assert journal_in(folder, register).events() == (FIRST, SECOND)
    journal.close()


def test_journal_lock_excludes_emit_before_first_event(tmp_path: Path) -> None:
    """The lock excludes other users even before the folder has any event."""
    register = Register()
    one, two = journal_in(tmp_path / "none", register), journal_in(tmp_path / "none", register)
    emitting = threading.Thread(target=two.emit, args=(FIRST,))
    with one.locked():
        assert one.events() == ()
        emitting.start()
        emitting.join(0.05)
        assert one.events() == ()
        assert register.value == ZERO
    emitting.join(30)
    assert one.events() == (FIRST,)
    assert one.version == 1
    one.close()
    two.close()


def test_journal_events_without_folder_is_empty(tmp_path: Path) -> None:
    """If the folder cannot be created, reading returns no events and emitting fails."""
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "log", Path("/proc/none/log")):
        journal = journal_in(path, Register())
        if path.parts[1] == "proc":
            with journal.locked():
                assert journal.events() == ()
            with raises(JournalError, "unwritable"):
                journal.emit(FIRST)
        else:
            with raises(JournalError, "unwritable") as caught:
                journal.events()
            assert isinstance(caught.value.__cause__, NotADirectoryError)
        journal.close()


def test_journal_sees_events_of_other_processes(tmp_path: Path) -> None:
    """A log that has grown is read again; an unchanged log returns the same tuple."""
    register = Register()
    one, two = journal_in(tmp_path, register), journal_in(tmp_path, register)
    one.emit(FIRST)
    assert two.events() == (FIRST,)
    two.emit(SECOND)
    one.emit(THIRD)
    assert one.events() == two.events() == (FIRST, SECOND, THIRD)
    assert one.events() is one.events()
    one.close()
    two.close()


def test_journal_with_removed_lock_files_still_excludes(tmp_path: Path) -> None:
    """Processes that opened the lock files before their removal and after it exclude each other."""
    register = Register()
    old, new = journal_in(tmp_path, register), journal_in(tmp_path, register)
    old.emit(FIRST)
    (tmp_path / LOCK).unlink()
    (tmp_path / QUEUE).unlink()
    emitting = threading.Thread(target=old.emit, args=(THIRD,))
    with new.locked():
        emitting.start()
        emitting.join(0.05)
        new.emit(SECOND)
    emitting.join(30)
    assert new.events() == old.events() == (FIRST, SECOND, THIRD)
    assert register.value == replay_from(ZERO, (FIRST, SECOND, THIRD))
    old.close()
    new.close()


def test_journal_used_after_close_fails_without_lock(tmp_path: Path) -> None:
    """A closed journal raises an error and does not block other journals."""
    register = Register()
    journal = journal_in(tmp_path, register)
    journal.emit(FIRST)
    journal.close()
    journal.close()
    for call in (journal.events, lambda: journal.emit(SECOND)):
        with raises(JournalError, "closed"):
            call()
    other = journal_in(tmp_path, register)
    assert other.events() == (FIRST,)
    other.close()


def test_journal_lock_is_reentrant_and_excludes_threads(tmp_path: Path) -> None:
    """The holder may lock again; other threads wait for the outermost unlock."""
    register = Register()
    journal = journal_in(tmp_path, register)
    other = threading.Thread(target=journal.emit, args=(SECOND,))
    with journal.locked(), journal.locked():
        journal.emit(FIRST)
        other.start()
        other.join(0.05)
        assert journal.events() == (FIRST,)
    other.join(30)
    assert journal.events() == (FIRST, SECOND)
    journal.close()


# -- in memory ---------------------------------------------------------------------------------


def test_memory_journal_keeps_log_and_register_consistent() -> None:
    """Extend and log happen together; a foreign extend is an error; `begin` starts a new log."""
    register = Register()
    journal = MemoryJournal(register.access)
    journal.emit(FIRST)
    assert journal.events() == (FIRST,)
    assert journal.events() is journal.events()
    assert register.value == replay_from(ZERO, (FIRST,))
    with pytest.raises(UsageError):
        journal.emit(runtime_event("a", b"", 2))
    register.value = foreign = replay_from(ZERO, (THIRD,))
    with raises(JournalError, "mismatch", expected=replay_from(ZERO, (FIRST,)), actual=foreign):
        journal.emit(SECOND)
    assert journal.events() == (FIRST,)
    journal.begin("boot-2", (THIRD,))
    journal.emit(SECOND)
    assert journal.events() == (THIRD, SECOND)


@every_case("error_type", [BackendError, KeyboardInterrupt])
@every_case("done", [False, True])
def test_memory_journal_extend_failing_after_the_fact_records_event(
    error_type: type[BaseException], *, done: bool
) -> None:
    """An extend that raises after its effect is recorded; only an interrupt is raised again."""
    register = Register()
    failure = (
        error_type("too late", reason="io_error")
        if error_type is BackendError
        else error_type("too late")
    )

    def fail(digest: bytes) -> None:
        if done:
            register.access.extend(digest)
        raise failure

    journal = MemoryJournal(RegisterAccess(register.access.read, fail))
    if done and error_type is BackendError:
        journal.emit(FIRST)
    else:
        with pytest.raises(error_type, match="too late"):
            journal.emit(FIRST)
    assert journal.events() == ((FIRST,) if done else ())


@contextlib.contextmanager
def limited_file_size() -> Iterator[None]:
    """Let no file of this process grow."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", [LOG, PENDING, VERSION, BOOT_ID])
@pytest.mark.parametrize("special", ["fifo", "/dev/zero"])
def test_folder_access_to_special_file_fails_at_once(
    tmp_path: Path, name: str, special: str
) -> None:
    """FIFOs, which block, and links to devices are rejected; the error names the path."""
    problem = "not a regular file"
    if special == "fifo":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to(special)
        problem = "symbolic link, not followed"
    folder = OsFolder(tmp_path, LOCK)
    path = re.escape(str(tmp_path / name))
    with pytest.raises(OSError, match=f"{problem}: '{path}'"):
        folder.read(name)
    for change in (folder.write, folder.append):
        # Opening a FIFO without a reader for writing fails first (ENXIO).
        with pytest.raises(OSError, match=f"({problem}|No such device.*): '{path}'"):
            change(name, b"x")


def test_folder_read_over_limit_fails(tmp_path: Path) -> None:
    """A file of the maximum size is read; one byte more is an error."""
    folder = OsFolder(tmp_path, LOCK)
    with (tmp_path / PENDING).open("wb") as file:
        file.truncate(MAX_FILE_SIZE)
    assert folder.read(PENDING) == bytes(MAX_FILE_SIZE)
    with (tmp_path / PENDING).open("ab") as file:
        file.write(b"x")
    with pytest.raises(OSError, match=f"more than {MAX_FILE_SIZE} bytes: '.*{PENDING}'"):
        folder.read(PENDING)


def test_journal_error_on_full_disk_names_file(tmp_path: Path) -> None:
    """The error names the file, which the system call on a descriptor does not report."""
    journal = journal_in(tmp_path, Register())
    journal.emit(FIRST)
    with limited_file_size(), raises(JournalError, "unwritable") as caught:
        journal.emit(SECOND)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.filename == str(tmp_path / PENDING)
    journal.emit(THIRD)
    assert journal.events() == (FIRST, THIRD)
    journal.close()


def test_journal_recovery_on_full_disk_is_completed_later(tmp_path: Path) -> None:
    """An extended event that cannot be logged is reported, and logged once there is space."""
    register = Register()
    journal = journal_in(tmp_path, register)
    journal.emit(FIRST)
    (tmp_path / PENDING).write_bytes(LINE2)
    register.value = replay_from(register.value, (SECOND,))
    with limited_file_size(), raises(JournalError, "not_recorded") as caught:
        journal.events()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.filename == str(tmp_path / LOG)
    assert journal.events() == (FIRST, SECOND)
    journal.close()


def test_journal_detects_change_with_restored_mtime(tmp_path: Path) -> None:
    """A change that keeps inode, size and modification time is detected."""
    journal = journal_in(tmp_path, Register())
    journal.emit(FIRST)
    assert journal.events() == (FIRST,)
    before = (tmp_path / LOG).stat()
    with (tmp_path / LOG).open("r+b") as file:
        file.write(b"[")
    os.utime(tmp_path / LOG, ns=(before.st_atime_ns, before.st_mtime_ns))
    with raises(JournalError, "damaged", part=str(tmp_path / LOG)):
        journal.events()
    journal.close()


def test_exclusive_journal_rereads_after_mismatch(tmp_path: Path) -> None:
    """After a mismatch the cached events are dropped, so that a restored log is read."""
    register = Register()
    folder = OsFolder(tmp_path, LOCK)
    journal = Journal(folder, register.access, boot_id="boot-1", exclusive=True)
    journal.emit(FIRST)
    good = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(LINE2)
    with raises(JournalError, "mismatch", part=str(tmp_path / LOG)):
        journal.emit(THIRD)
    assert journal.events() == (SECOND,)
    (tmp_path / LOG).write_bytes(good)
    assert journal.events() == (FIRST,)
    journal.close()


@pytest.mark.parametrize("inside", [True, False])
def test_emit_to_hard_linked_log_fails_before_extend(
    tmp_path: Path,
    inside: bool,
) -> None:
    """A log with a second hard link is readable, but emitting fails before any change."""
    register = Register()
    journal = journal_in(tmp_path / "log", register)
    journal.emit(FIRST)
    value = register.value
    other = tmp_path / ("log" if inside else ".") / "backup.log"
    other.hardlink_to(tmp_path / "log" / LOG)
    remedy = str(other) if inside else "its other name (find / -xdev -samefile FILE)"
    with raises(JournalError, "unwritable") as caught:
        journal.emit(SECOND)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EMLINK
    assert f"remove {remedy}" in str(caught.value)
    assert register.value == value
    assert not (tmp_path / "log" / PENDING).exists()
    assert journal.events() == journal_in(tmp_path / "log", register).events() == (FIRST,)
    other.unlink()
    journal.emit(SECOND)
    assert journal.events() == (FIRST, SECOND)
    journal.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of a file")
def test_emit_to_log_of_other_owner_fails_before_extend(tmp_path: Path) -> None:
    """A log of another owner makes emitting fail before the register is extended."""
    register = Register()
    journal = journal_in(tmp_path, register)
    journal.emit(FIRST)
    value = register.value
    os.chown(tmp_path / LOG, 65534, -1)
    with raises(JournalError, "unwritable", part="65534"):
        journal.emit(SECOND)
    assert register.value == value
    assert journal.events() == (FIRST,)
    journal.close()
