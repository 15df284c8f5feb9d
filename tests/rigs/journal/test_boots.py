"""Runtime log over reboots, foreign extends, other programs' logs and full disks.

It uses the emulator's kernel files, with the log at its default path.
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
from tests.raising import raises
from tests.rigs.emulator import requires_fuse
from tests.rigs.journal import upstream_agent
from tests.rigs.journal.client import make_payload
from tests.rigs.journal.machine import (
    BOOT_ID,
    KINDS,
    PENDING,
    Machine,
    event_names,
    machine_with_log,
    make_names,
    replay_names,
)
from tests.rigs.journal.upstream_agent import LOG, VERSION

pytestmark = [pytest.mark.rig, requires_fuse]

FOREIGN = hashlib.sha384(b"foreign").digest()


@pytest.fixture(name="running", scope="module", params=KINDS)
def run_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Run a machine of each type."""
    with machine_with_log(request.param, at_its_place=True) as machine:
        yield machine


@pytest.fixture(name="machine")
def boot_machine(running: Machine) -> Machine:
    """Boot it, with an empty directory for the log."""
    running.start_over()
    return running


def assert_rejects_evidence(machine: Machine, replay: bytes) -> list[str]:
    """Assert that events and evidence are rejected without changes, and quotes are made.

    Args:
        machine: A machine whose RTMR3 does not match its log.
        replay: RTMR3 after a replay of the log.

    Returns:
        The texts of the errors.
    """
    register, log, pending = machine.register(), machine.read(LOG), machine.read(PENDING)
    assert register != replay
    texts = []
    with Attester(machine.backend()) as tee:
        for _ in range(2):
            with raises(JournalError, "mismatch", expected=replay, actual=register) as refused:
                tee.emit_event("one more", b"")
            with raises(ReplayError, "rtmr_mismatch") as not_believed:
                tee.attest(report_data=bytes(64))
            assert tee.get_quote(b"").rtmrs[3] == register
            texts += [str(refused.value), str(not_believed.value)]
    assert (machine.read(LOG), machine.read(PENDING)) == (log, pending)
    assert machine.register() == register
    return texts


# -- boots -----------------------------------------------------------------------------------------


def test_reboot_archives_the_log(machine: Machine) -> None:
    """Registers are zero and the boot ID is new: the old log is kept, and not used."""
    assert machine.run("emit", "a", "b").done == ["a", "b"]
    boot, log = machine.emulator.boot_id, machine.read(LOG)
    machine.emulator.reboot()
    assert machine.run("look").found == [([], bytes(48), bytes(48))]
    assert machine.read(LOG) == log  # reading changes nothing
    assert machine.run("emit", "c").done == ["c"]
    assert machine.logged() == ["c"]
    assert machine.read(f"{LOG}.{boot}") == log
    assert machine.read(BOOT_ID) == f"{machine.emulator.boot_id}\n".encode()
    ((names, _, _),) = machine.run("look").found
    assert names == ["c"]


def test_reboot_archives_a_pending_event(machine: Machine) -> None:
    """It is not completed."""
    assert machine.run("emit", "a").done == ["a"]
    assert machine.run("emit", "b", stop="after extend register").killed
    boot, log, pending = machine.emulator.boot_id, machine.read(LOG), machine.read(PENDING)
    assert pending == upstream_agent.line_of("b", make_payload("b"))
    machine.emulator.reboot()
    assert machine.run("look").found == [([], bytes(48), bytes(48))]
    assert machine.run("emit", "c").done == ["c"]
    assert machine.logged() == ["c"]
    assert (machine.read(f"{LOG}.{boot}"), machine.read(f"{PENDING}.{boot}")) == (log, pending)


def test_kexec_makes_the_log_unusable(machine: Machine) -> None:
    """The boot ID is new and RTMR3 unchanged; nothing is deleted."""
    assert machine.run("emit", "a", "b").done == ["a", "b"]
    machine.emulator.kexec()
    assert_rejects_evidence(machine, bytes(48))
    machine.emulator.reboot()
    assert machine.run("emit", "c").done == ["c"]
    assert machine.logged() == ["c"]


@pytest.mark.parametrize("happened", ["kexec", "foreign extend"])
def test_journal_errors_have_a_remedy(machine: Machine, happened: str) -> None:
    """They recommend `attestkit doctor` or a reboot."""
    assert machine.run("emit", "a").done == ["a"]
    if happened == "kexec":
        machine.emulator.kexec()
        replay = bytes(48)
    else:
        upstream_agent.extend(machine.root, FOREIGN)
        replay = replay_names(["a"])
    for text in assert_rejects_evidence(machine, replay):
        assert re.search(r"attestkit doctor|reboot", text), text


def test_foreign_extend_stops_running_and_new_processes(machine: Machine) -> None:
    """RTMR3 was extended without an event."""
    with Attester(machine.backend()) as tee:
        tee.emit_event("a", make_payload("a"))
        assert event_names(tee) == ["a"]
        upstream_agent.extend(machine.root, FOREIGN)
        expected, actual = replay_names(["a"]), machine.register()
        with raises(JournalError, "mismatch", expected=expected, actual=actual):
            tee.emit_event("b", b"")
        with raises(ReplayError, "rtmr_mismatch"):
            tee.attest(report_data=bytes(64))
        assert tee.get_quote(b"").rtmrs[3] == machine.register()
    assert_rejects_evidence(machine, replay_names(["a"]))


# -- other programs' logs --------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "version_file"), [(1, False), (1, True), (2, True)])
def test_agent_log_without_boot_id_is_adopted(
    machine: Machine, version: int, *, version_file: bool
) -> None:
    """It is continued if it explains the register."""
    for name in ("a", "b"):
        machine.upstream(name, version)
    if version_file:
        (machine.log / VERSION).write_text(str(version))
    log = machine.read(LOG)
    assert log is not None
    with Attester(machine.backend()) as tee:
        quote, seen = tee.evidence_source.quote_and_log(bytes(64))
        assert [event.name for event in seen.runtime] == ["a", "b"]
        assert seen.replay()[3] == quote.rtmrs[3]
        assert machine.read(BOOT_ID) is None  # reading changes nothing
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


def drop_first_line(log: bytes) -> bytes:
    """Return the log without its first event."""
    return b"".join(log.splitlines(keepends=True)[1:])


def drop_last_line(log: bytes) -> bytes:
    """Return the log without its last event."""
    return b"".join(log.splitlines(keepends=True)[:-1])


def reverse_lines(log: bytes) -> bytes:
    """Return the log in reverse order."""
    return b"".join(reversed(log.splitlines(keepends=True)))


@pytest.mark.parametrize("modify", [drop_first_line, drop_last_line, reverse_lines])
@pytest.mark.parametrize("boot_id", [True, False])
def test_log_that_does_not_replay_is_rejected(
    machine: Machine, modify: Callable[[bytes], bytes], *, boot_id: bool
) -> None:
    """With and without attestkit's boot ID."""
    for name in ("a", "b"):
        machine.upstream(name)
    if boot_id:
        (machine.log / BOOT_ID).write_text(machine.emulator.boot_id)
    log = machine.read(LOG)
    assert log is not None
    (machine.log / LOG).write_bytes(modify(log))
    digests = [digest for _, digest in upstream_agent.read_events(machine.log)]
    assert_rejects_evidence(machine, upstream_agent.replay(digests))


def test_agent_log_of_earlier_boot_is_rejected_on_emulator(machine: Machine) -> None:
    """It does not explain a register of zeros."""
    machine.upstream("a")
    machine.emulator.reboot()
    assert_rejects_evidence(machine, replay_names(["a"]))


def test_events_of_another_program_are_read(machine: Machine) -> None:
    """A running process continues its log."""
    with Attester(machine.backend()) as tee:
        expected = []
        for number in range(5):
            tee.emit_event(f"ours {number}", make_payload(f"ours {number}"))
            machine.upstream(f"theirs {number}")
            expected += [f"ours {number}", f"theirs {number}"]
            if number % 2:
                assert event_names(tee) == expected
        assert event_names(tee) == expected
    assert machine.logged() == expected


def test_foreign_event_after_killed_extend_is_rejected(machine: Machine) -> None:
    """The order of the two events is unknown."""
    machine.upstream("a")
    assert machine.run("emit", "b", stop="after extend register").killed
    machine.upstream("c")
    assert_rejects_evidence(machine, replay_names(["a", "c"]))


# -- a full disk -----------------------------------------------------------------------------------


def test_file_size_limit_loses_no_event(machine: Machine) -> None:
    """A refused event is in neither, or completed by the next use of the log.

    The result depends on the write that fails; the process continues.
    """
    assert len(machine.run("emit", *make_names("before", 6)).done) == 6
    name = "refused"
    line = len(upstream_agent.line_of(name, make_payload(name)))
    expected = machine.logged()
    for room, happens in (
        *((room, False) for room in (0, 1, line // 2, line - 1)),  # bytes of the pending file
        (line, True),  # and none of the log
        *((room, True) for room in (-line, 1 - line, -line // 2, -1)),  # missing bytes of the log
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


def fill_disk(folder: Path, *, but_pages: int) -> Path:
    """Fill a disk except for some pages; return the file."""
    path = folder / "filler"
    page = bytes(4096)
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(page) == len(page):
            pass
    os.truncate(path, path.stat().st_size // 4096 * 4096 - but_pages * 4096)
    return path


def emit_many(tee: Attester, names: list[str]) -> None:
    """Emit events and record each name, even of a refused event, which is in the register."""
    for name in make_names("event", 100):
        names.append(name)
        tee.emit_event(name, make_payload(name))


def test_full_disk_loses_no_event(machine: Machine, small_disk: Path) -> None:
    """Errors are raised with no room, or room for the pending file only; later events succeed."""
    small = Machine(machine.kind, machine.emulator, machine.clients, small_disk / "run/dstack")
    small.start_over()
    expected = ["first", "second"]
    assert small.run("emit", *expected).done == expected
    filler = fill_disk(small_disk, but_pages=0)
    with Attester(small.backend()) as tee:
        with raises(JournalError, "unwritable"):
            tee.emit_event("refused", make_payload("refused"))
        assert small.describe_pending() == "no event pending"
        assert event_names(tee) == expected
        filler.unlink()
        filler = fill_disk(small_disk, but_pages=1)
        with raises(JournalError, "not_recorded"):  # no page is free for the log
            emit_many(tee, expected)
        assert small.describe_pending() in {"extended", "half logged"}
        with contextlib.suppress(JournalError):  # it cannot be completed yet
            assert event_names(tee) == expected
        filler.unlink()
        assert event_names(tee) == expected
    ((names, _, _),) = small.run("look and emit", "next").found
    assert names == expected
    assert small.logged() == [*expected, "next"]
