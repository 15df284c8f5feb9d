"""What a runtime log lives through besides kills: boots, other programs, other logs, a full disk.

On the kernel's files as the emulator has them, with the log at its own place.
"""

import contextlib
import hashlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attestkit.attester import Attester
from attestkit.errors import JournalError, ReplayError
from tests.rigs import journal_upstream
from tests.rigs.emulator import requires_fuse
from tests.rigs.journal_client import payload_of
from tests.rigs.journal_machine import (
    BOOT_ID,
    KINDS,
    PENDING,
    Machine,
    machine_with_log,
    many,
    names_in,
    replay_names,
)
from tests.rigs.journal_upstream import LOG, VERSION

pytestmark = [pytest.mark.rig, requires_fuse]

FOREIGN = hashlib.sha384(b"somebody else").digest()


@pytest.fixture(name="running", scope="module", params=KINDS)
def run_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Run a machine of each kind."""
    with machine_with_log(request.param, at_its_place=True) as machine:
        yield machine


@pytest.fixture(name="machine")
def boot_machine(running: Machine) -> Machine:
    """Boot it, with an empty folder for the log."""
    running.start_over()
    return running


def check_refused(machine: Machine, replay: bytes) -> list[str]:
    """Require that nothing is emitted or attested, that quotes are given, and nothing changes.

    Args:
        machine: Where RTMR3 is not what the log replays to.
        replay: What it replays to.

    Returns:
        The texts of the errors.
    """
    register, log, pending = machine.register(), machine.read(LOG), machine.read(PENDING)
    assert register != replay
    texts = []
    with Attester(machine.backend()) as tee:
        for _ in range(2):
            with pytest.raises(JournalError) as refused:
                tee.emit_event("one more", b"")
            assert register.hex() in str(refused.value)
            assert replay.hex() in str(refused.value)
            with pytest.raises(ReplayError, match="RTMR3") as not_believed:
                tee.attest(b"")
            assert tee.get_quote(b"").rtmrs[3] == register
            texts += [str(refused.value), str(not_believed.value)]
    assert (machine.read(LOG), machine.read(PENDING)) == (log, pending)
    assert machine.register() == register
    return texts


# -- boots -----------------------------------------------------------------------------------------


def test_a_reboot_puts_the_log_aside_and_begins_a_new_one(machine: Machine) -> None:
    """Registers are zero and the boot id is another: the old log is kept, and counts no more."""
    assert machine.run("emit", "a", "b").done == ["a", "b"]
    boot, log = machine.emulator.boot_id, machine.read(LOG)
    machine.emulator.reboot()
    assert machine.run("look").found == [([], bytes(48), bytes(48))]
    assert machine.read(LOG) == log  # looking changes nothing
    assert machine.run("emit", "c").done == ["c"]
    assert machine.logged() == ["c"]
    assert machine.read(f"{LOG}.{boot}") == log
    assert machine.read(BOOT_ID) == f"{machine.emulator.boot_id}\n".encode()
    ((names, _, _),) = machine.run("look").found
    assert names == ["c"]


def test_an_event_of_an_earlier_boot_is_not_completed(machine: Machine) -> None:
    """What was on its way when the machine went down goes aside with the log."""
    assert machine.run("emit", "a").done == ["a"]
    assert machine.run("emit", "b", stop="after extend register").killed
    boot, log, pending = machine.emulator.boot_id, machine.read(LOG), machine.read(PENDING)
    assert pending == journal_upstream.line_of("b", payload_of("b"))
    machine.emulator.reboot()
    assert machine.run("look").found == [([], bytes(48), bytes(48))]
    assert machine.run("emit", "c").done == ["c"]
    assert machine.logged() == ["c"]
    assert (machine.read(f"{LOG}.{boot}"), machine.read(f"{PENDING}.{boot}")) == (log, pending)


def test_after_a_kexec_nobody_explains_the_register(machine: Machine) -> None:
    """The boot id is another and RTMR3 is as it was: the log is of no use, and nothing is lost."""
    assert machine.run("emit", "a", "b").done == ["a", "b"]
    machine.emulator.kexec()
    check_refused(machine, bytes(48))
    machine.emulator.reboot()
    assert machine.run("emit", "c").done == ["c"]
    assert machine.logged() == ["c"]


@pytest.mark.parametrize("happened", ["kexec", "foreign extend"])
def test_the_errors_say_what_to_do(machine: Machine, happened: str) -> None:
    """Whoever reads one of them learns where to look, or that only a reboot helps."""
    assert machine.run("emit", "a").done == ["a"]
    if happened == "kexec":
        machine.emulator.kexec()
        replay = bytes(48)
    else:
        journal_upstream.extend(machine.root, FOREIGN)
        replay = replay_names(["a"])
    for text in check_refused(machine, replay):
        assert re.search(r"attestkit doctor|reboot", text), text


def test_a_foreign_extend_stops_the_log(machine: Machine) -> None:
    """Somebody extended RTMR3 and logged nothing: not papered over, in old and new programs."""
    with Attester(machine.backend()) as tee:
        tee.emit_event("a", payload_of("a"))
        assert names_in(tee) == ["a"]
        journal_upstream.extend(machine.root, FOREIGN)
        with pytest.raises(JournalError) as refused:
            tee.emit_event("b", b"")
        assert machine.register().hex() in str(refused.value)
        assert replay_names(["a"]).hex() in str(refused.value)
        with pytest.raises(ReplayError, match="RTMR3"):
            tee.attest(b"")
        assert tee.get_quote(b"").rtmrs[3] == machine.register()
    check_refused(machine, replay_names(["a"]))


# -- other programs' logs --------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "version_file"), [(1, False), (1, True), (2, True)])
def test_a_log_older_than_us_is_taken_over(
    machine: Machine, version: int, *, version_file: bool
) -> None:
    """The dstack agent's log has no boot id: it goes on if it explains the register."""
    for name in ("a", "b"):
        machine.upstream(name, version)
    if version_file:
        (machine.log / VERSION).write_text(str(version))
    log = machine.read(LOG)
    assert log is not None
    with Attester(machine.backend()) as tee:
        quote, seen = tee.quote_and_log(bytes(64))
        assert [event.name for event in seen.runtime] == ["a", "b"]
        assert seen.replay()[3] == quote.rtmrs[3]
        assert machine.read(BOOT_ID) is None  # looking changes nothing
        assert tee.emit_event("c", b"").version == version
    after = machine.read(LOG)
    assert after is not None
    assert after.startswith(log)
    assert machine.logged() == ["a", "b", "c"]
    assert machine.read(BOOT_ID) == f"{machine.emulator.boot_id}\n".encode()
    assert machine.read(VERSION) == b"%d" % version
    machine.upstream("d", version)
    assert machine.logged() == ["a", "b", "c", "d"]
    ((names, _, _),) = machine.run("look").found
    assert names == ["a", "b", "c", "d"]


def lose_the_first_line(log: bytes) -> bytes:
    """Return the log without its first event."""
    return b"".join(log.splitlines(keepends=True)[1:])


def lose_the_last_line(log: bytes) -> bytes:
    """Return the log without its last event."""
    return b"".join(log.splitlines(keepends=True)[:-1])


def swap(log: bytes) -> bytes:
    """Return the log in another order."""
    return b"".join(reversed(log.splitlines(keepends=True)))


@pytest.mark.parametrize("meddle", [lose_the_first_line, lose_the_last_line, swap])
@pytest.mark.parametrize("boot_id", [True, False])
def test_a_log_that_does_not_replay_is_refused(
    machine: Machine, meddle: Callable[[bytes], bytes], *, boot_id: bool
) -> None:
    """Whether it is ours or another program's."""
    for name in ("a", "b"):
        machine.upstream(name)
    if boot_id:
        (machine.log / BOOT_ID).write_text(machine.emulator.boot_id)
    log = machine.read(LOG)
    assert log is not None
    (machine.log / LOG).write_bytes(meddle(log))
    digests = [digest for _, digest in journal_upstream.read_events(machine.log)]
    check_refused(machine, journal_upstream.replay(digests))


def test_a_log_of_another_boot_without_its_boot_id_is_refused(machine: Machine) -> None:
    """It is not known to be of an earlier boot, and it does not explain a register of zeros."""
    machine.upstream("a")
    machine.emulator.reboot()
    check_refused(machine, replay_names(["a"]))


def test_another_program_may_emit_in_between(machine: Machine) -> None:
    """What it logged is seen by a program that runs already, and goes on."""
    with Attester(machine.backend()) as tee:
        expected = []
        for number in range(5):
            tee.emit_event(f"ours {number}", payload_of(f"ours {number}"))
            machine.upstream(f"theirs {number}")
            expected += [f"ours {number}", f"theirs {number}"]
            if number % 2:
                assert names_in(tee) == expected
        assert names_in(tee) == expected
    assert machine.logged() == expected


def test_another_program_that_goes_on_where_we_died_is_not_papered_over(machine: Machine) -> None:
    """Killed between extend and log, and then another program's event: nobody knows the order."""
    machine.upstream("a")
    assert machine.run("emit", "b", stop="after extend register").killed
    machine.upstream("c")
    check_refused(machine, replay_names(["a", "c"]))


# -- a full disk -----------------------------------------------------------------------------------


def test_a_file_that_cannot_grow_costs_no_event(machine: Machine) -> None:
    """An event is refused and in neither, or refused and completed by the next use of the log.

    It depends on which of its writes there was room for, whole or in part; the program goes on.
    """
    assert len(machine.run("emit", *many("before", 6)).done) == 6
    name = "refused"
    line = len(journal_upstream.line_of(name, payload_of(name)))
    expected = machine.logged()
    for room, happens in (
        *((room, False) for room in (0, 1, line // 2, line - 1)),  # bytes of the pending file
        (line, True),  # and none of the log
        *((room, True) for room in (-line, 1 - line, -line // 2, -1)),  # bytes short in the log
    ):
        size = len(machine.read(LOG) or b"")
        assert size > line
        answer = machine.run("emit", name, "next", room=room if room >= 0 else size + line + room)
        assert answer.done == ["next"]
        ((_, kind, text),) = answer.failed
        assert kind == "JournalError"
        assert "File too large" in text
        expected += [name, "next"] if happens else ["next"]
        assert machine.logged() == expected
        assert machine.read(PENDING) is None
    size = len(machine.read(LOG) or b"")
    assert machine.run("emit", name, room=size + line).done == [name]


@pytest.fixture(name="small_disk")
def mount_small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "attestkit-test", str(folder)]
    if subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here: that needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, *, but_pages: int) -> Path:
    """Fill a disk up but for so many pages; return the file that does."""
    path = folder / "filler"
    page = bytes(4096)
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(page) == len(page):
            pass
    os.truncate(path, path.stat().st_size // 4096 * 4096 - but_pages * 4096)
    return path


def emit_many(tee: Attester, names: list[str]) -> None:
    """Emit events and note each one's name; that of a refused one too: it is in the register."""
    for name in many("event", 100):
        names.append(name)
        tee.emit_event(name, payload_of(name))


def test_a_full_disk_costs_no_event(machine: Machine, small_disk: Path) -> None:
    """No room at all, and room for the pending file only: errors, and later all goes on."""
    small = Machine(machine.kind, machine.emulator, machine.clients, small_disk / "run/dstack")
    small.start_over()
    expected = ["first", "second"]
    assert small.run("emit", *expected).done == expected
    filler = fill(small_disk, but_pages=0)
    with Attester(small.backend()) as tee:
        with pytest.raises(JournalError, match="No space left"):
            tee.emit_event("refused", payload_of("refused"))
        assert small.what_is_left() == "nothing on its way"
        assert names_in(tee) == expected
        filler.unlink()
        filler = fill(small_disk, but_pages=1)
        with pytest.raises(JournalError, match="No space left"):  # there is no page for the log
            emit_many(tee, expected)
        assert small.what_is_left() in {"extended", "half logged"}
        with contextlib.suppress(JournalError):  # it cannot be completed yet
            assert names_in(tee) == expected
        filler.unlink()
        assert names_in(tee) == expected
    ((names, _, _),) = small.run("look and emit", "next").found
    assert names == expected
    assert small.logged() == [*expected, "next"]
