"""The journal's real files: the agent's names and modes, its lock; and the journal without any."""

import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys
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
from attestkit.event_log.journal_files import LONGEST, QUEUE, OsFolder
from attestkit.event_log.runtime_events import runtime_event, runtime_line
from tests.event_log.journal_rig import ZERO, Register
from tests.vectors import load, needs_shared

FIRST = runtime_event("first", b"\x01")
SECOND = runtime_event("second", b"")
THIRD = runtime_event("third", b"3" * 300)
LINE1, LINE2 = map(runtime_line, (FIRST, SECOND))


def journal_in(folder: Path, register: Register) -> Journal:
    """Return a journal on the disk."""
    return Journal(OsFolder(folder, LOCK), register.access, boot_id="boot-1")


def test_files_are_the_agents(tmp_path: Path) -> None:
    """Names, content and modes are those of the agent's log."""
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


@needs_shared
def test_the_agents_lines_are_read(tmp_path: Path) -> None:
    """Lines as the agent writes them give the events of the vectors."""
    rows = load("runtime_events.json")["digests"]
    for version in (1, 2):
        chosen = [row for row in rows if row["version"] == version and ":" not in row["event"]]
        lines = "".join(f"{row['log_line']}\n" for row in chosen)
        register = Register()
        folder = tmp_path / str(version)
        folder.mkdir()
        (folder / LOG).write_text(lines, encoding="utf-8")
        journal = journal_in(folder, register)
        assert [event.digest.hex() for event in journal.events()] == [
            row["sha384"] for row in chosen
        ]
        journal.close()


def test_the_first_event_waits_like_any_other(tmp_path: Path) -> None:
    """Before there is any event, whoever takes the lock keeps all others out, too."""
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


def test_reading_needs_no_folder(tmp_path: Path) -> None:
    """Where none can be made there are no events, and reading is no error."""
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file" / "log", Path("/proc/none/log")):
        journal = journal_in(place, Register())
        if place.parts[1] == "proc":
            with journal.locked():
                assert journal.events() == ()
            with pytest.raises(JournalError, match="cannot write"):
                journal.emit(FIRST)
        else:
            with pytest.raises(JournalError, match="Not a directory"):
                journal.events()
        journal.close()


def test_two_programs_see_each_others_events(tmp_path: Path) -> None:
    """A log that has grown is read again; one that has not is the same tuple."""
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


def test_a_folder_that_cannot_be_used_is_a_journal_error(tmp_path: Path) -> None:
    """The operating system's error says why, inside ours."""
    (tmp_path / "file").write_bytes(b"")
    journal = journal_in(tmp_path / "file" / "log", Register())
    with pytest.raises(JournalError, match="Not a directory"):
        journal.emit(FIRST)
    with pytest.raises(JournalError):
        journal.events()


HOLDER = """
import sys
from attestkit.event_log.journal_files import LONGEST, QUEUE, OsFolder
folder = OsFolder(sys.argv[1], sys.argv[2])
assert folder.lock()
print("locked", flush=True)
sys.stdin.readline()
"""


def test_the_lock_keeps_other_programs_out(tmp_path: Path) -> None:
    """While somebody holds the agent's lock file, nothing is emitted."""
    register = Register()
    journal = journal_in(tmp_path, register)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), LOCK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"locked\n"
        emitting = threading.Thread(target=journal.emit, args=(FIRST,))
        emitting.start()
        emitting.join(0.1)
        assert emitting.is_alive()
        assert register.value == ZERO
        holder.stdin.write(b"\n")
        holder.stdin.close()
        emitting.join(30)
    assert register.value == replay_from(ZERO, (FIRST,))
    journal.close()


def test_a_lock_without_a_name_keeps_nobody_out(tmp_path: Path) -> None:
    """Removing the files does not part those who had them open from those who had not."""
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


def test_a_folder_that_is_gone_is_made_again(tmp_path: Path) -> None:
    """With the log its events are gone, and the register still has them."""
    register = Register()
    journal = journal_in(tmp_path / "log", register)
    journal.emit(FIRST)
    shutil.rmtree(tmp_path / "log")
    assert journal.events() == ()
    with pytest.raises(JournalError, match="disagree"):
        journal.emit(SECOND)
    register.value = ZERO
    journal.emit(SECOND)
    assert journal.events() == (SECOND,)
    journal.close()


def test_a_watched_journal_does_the_same(tmp_path: Path) -> None:
    """Every step is told before and after, and the files are what they are without."""
    register = Register()
    journal = journal_in(tmp_path / "log", register)
    steps: list[str] = []
    journal.watch(steps.append)
    journal.emit(FIRST)
    journal.emit(THIRD)
    assert journal_in(tmp_path / "log", register).events() == (FIRST, THIRD)
    assert steps[:2] == ["before make folder", "after make folder"]
    assert steps[-1] == f"after remove {PENDING}"
    assert steps.count("before extend") == steps.count("after extend") == 2
    assert steps.count(f"half append {LOG}") == 2
    journal.close()


def test_a_closed_journal_takes_no_lock(tmp_path: Path) -> None:
    """Whoever comes too late is told so, and keeps nobody else out."""
    register = Register()
    journal = journal_in(tmp_path, register)
    journal.emit(FIRST)
    journal.close()
    journal.close()
    for call in (journal.events, lambda: journal.emit(SECOND)):
        with pytest.raises(JournalError, match="closed"):
            call()
    other = journal_in(tmp_path, register)
    assert other.events() == (FIRST,)
    other.close()


def test_the_lock_is_reentrant_and_keeps_other_threads_out(tmp_path: Path) -> None:
    """What is done in one turn is not interrupted."""
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


def test_in_memory_the_rules_are_the_same() -> None:
    """Extend and log, or neither; a foreign extend stops it; begin starts anew."""
    register = Register()
    journal = MemoryJournal(register.access)
    journal.emit(FIRST)
    assert journal.events() == (FIRST,)
    assert journal.events() is journal.events()
    assert register.value == replay_from(ZERO, (FIRST,))
    with pytest.raises(UsageError):
        journal.emit(runtime_event("a", b"", 2))
    register.value = foreign = replay_from(ZERO, (THIRD,))
    with pytest.raises(JournalError, match=foreign.hex()):
        journal.emit(SECOND)
    assert journal.events() == (FIRST,)
    journal.begin("boot-2", (THIRD,))
    journal.emit(SECOND)
    assert journal.events() == (THIRD, SECOND)


@pytest.mark.parametrize("how", [BackendError, KeyboardInterrupt])
@pytest.mark.parametrize("done", [False, True])
def test_in_memory_the_register_counts(how: type[BaseException], *, done: bool) -> None:
    """An extend that fails after the fact has happened, and is no failure but an interrupt is."""
    register = Register()

    def fail(digest: bytes) -> None:
        if done:
            register.access.extend(digest)
        raise how("too late")

    journal = MemoryJournal(RegisterAccess(register.access.read, fail))
    if done and how is BackendError:
        journal.emit(FIRST)
    else:
        with pytest.raises(how, match="too late"):
            journal.emit(FIRST)
    assert journal.events() == ((FIRST,) if done else ())


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process grow."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("name", [LOG, PENDING, VERSION, BOOT_ID])
@pytest.mark.parametrize("what", ["fifo", "/dev/zero"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, name: str, what: str) -> None:
    """A FIFO would be waited for, with the lock; /dev/zero never ends. The error names the path."""
    refusal = "not a regular file"
    if what == "fifo":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to(what)
        refusal = "a link, which is not followed here"
    folder = OsFolder(tmp_path, LOCK)
    path = re.escape(str(tmp_path / name))
    with pytest.raises(OSError, match=f"{refusal}: '{path}'"):
        folder.read(name)
    for change in (folder.write, folder.append):
        # A FIFO without a reader cannot be opened for writing in the first place.
        with pytest.raises(OSError, match=f"({refusal}|No such device.*): '{path}'"):
            change(name, b"x")


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    """Not one byte over the bound, which a whole file may have."""
    folder = OsFolder(tmp_path, LOCK)
    with (tmp_path / PENDING).open("wb") as file:
        file.truncate(LONGEST)
    assert folder.read(PENDING) == bytes(LONGEST)
    with (tmp_path / PENDING).open("ab") as file:
        file.write(b"x")
    with pytest.raises(OSError, match=f"more than {LONGEST} bytes: '.*{PENDING}'"):
        folder.read(PENDING)


def test_a_disk_that_is_full_is_named(tmp_path: Path) -> None:
    """The system's calls on a descriptor do not tell the file; the error does."""
    journal = journal_in(tmp_path, Register())
    journal.emit(FIRST)
    path = re.escape(str(tmp_path / PENDING))
    with full_disk(), pytest.raises(JournalError, match=f"'{path}'; nothing was changed$"):
        journal.emit(SECOND)
    journal.emit(THIRD)
    assert journal.events() == (FIRST, THIRD)
    journal.close()


def test_an_event_that_the_log_lacks_is_told(tmp_path: Path) -> None:
    """RTMR3 has it and the disk is full: that is no disagreement, and it ends with the disk's."""
    register = Register()
    journal = journal_in(tmp_path, register)
    journal.emit(FIRST)
    (tmp_path / PENDING).write_bytes(LINE2)
    register.value = replay_from(register.value, (SECOND,))
    path = re.escape(str(tmp_path / LOG))
    told = (
        f"an earlier event is in RTMR3 and cannot be added to the runtime log: .*'{path}'; the next"
    )
    with full_disk(), pytest.raises(JournalError, match=told):
        journal.events()
    assert journal.events() == (FIRST, SECOND)
    journal.close()


def test_times_that_are_set_back_hide_nothing(tmp_path: Path) -> None:
    """A byte that changes within one inode, size and time of writing is seen."""
    journal = journal_in(tmp_path, Register())
    journal.emit(FIRST)
    assert journal.events() == (FIRST,)
    before = (tmp_path / LOG).stat()
    with (tmp_path / LOG).open("r+b") as file:
        file.write(b"[")
    os.utime(tmp_path / LOG, ns=(before.st_atime_ns, before.st_mtime_ns))
    damaged = re.escape(str(tmp_path / LOG))
    with pytest.raises(
        JournalError, match=f"damaged: {damaged}: .*line 1.*put back what was there"
    ):
        journal.events()
    journal.close()


def test_who_is_alone_reads_again_what_was_put_back(tmp_path: Path) -> None:
    """A damaged log that reads well is not kept; without an event between, the good one is seen."""
    register = Register()
    folder = OsFolder(tmp_path, LOCK)
    journal = Journal(folder, register.access, boot_id="boot-1", exclusive=True)
    journal.emit(FIRST)
    good = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(LINE2)
    with pytest.raises(
        JournalError, match=f"the runtime log {re.escape(str(tmp_path / LOG))} disa"
    ):
        journal.emit(THIRD)
    assert journal.events() == (SECOND,)
    (tmp_path / LOG).write_bytes(good)
    assert journal.events() == (FIRST,)
    journal.close()


@pytest.mark.parametrize("inside", [True, False])
def test_a_second_name_is_told_before_the_register_is_extended(
    tmp_path: Path,
    inside: bool,
) -> None:
    """As a backup by hard links makes it: what is there is read, and nothing is half done."""
    register = Register()
    journal = journal_in(tmp_path / "log", register)
    journal.emit(FIRST)
    value = register.value
    other = tmp_path / ("log" if inside else ".") / "backup.log"
    other.hardlink_to(tmp_path / "log" / LOG)
    cure = str(other) if inside else "its other name, which `find / -xdev -samefile FILE` tells"
    told = f"has a second name .*: remove {re.escape(cure)}: '.*/{LOG}'; nothing was changed$"
    with pytest.raises(JournalError, match=told):
        journal.emit(SECOND)
    assert register.value == value
    assert not (tmp_path / "log" / PENDING).exists()
    assert journal.events() == journal_in(tmp_path / "log", register).events() == (FIRST,)
    other.unlink()
    journal.emit(SECOND)
    assert journal.events() == (FIRST, SECOND)
    journal.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_log_of_somebody_else_is_told_before_the_register_is_extended(tmp_path: Path) -> None:
    """The same for whatever else keeps a log from being written."""
    register = Register()
    journal = journal_in(tmp_path, register)
    journal.emit(FIRST)
    value = register.value
    os.chown(tmp_path / LOG, 65534, -1)
    with pytest.raises(
        JournalError, match=r"belongs to user 65534, not to us.*nothing was changed"
    ):
        journal.emit(SECOND)
    assert register.value == value
    assert journal.events() == (FIRST,)
    journal.close()
