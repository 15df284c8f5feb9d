"""What both TDX backends share: registers, boot log, and a journal that believes a fresh report."""

import errno
import os
import signal
import threading
from pathlib import Path

import pytest

from attestkit.backends.base import RegisterExtender
from attestkit.backends.tdx.guest import TdGuest, read_boot_id
from attestkit.errors import BackendError, BackendUnavailableError, JournalError, UsageError
from attestkit.event_log.journal import replay_from
from attestkit.event_log.runtime_events import runtime_event
from tests.backends.tdx.fake_td import BOOT_ID, DONE, FakeTd, open_files

ONE, TWO = runtime_event("one", b"1"), runtime_event("two", b"2")
REPORT = "ioctl 0xc4405401"
WRITE = "write rtmr3:sha384"


@pytest.fixture
def td(tmp_path: Path) -> FakeTd:
    """Return a TDX guest with register files."""
    return FakeTd(tmp_path)


def guest(td: FakeTd) -> TdGuest:
    """Return what is tested, on a fake TD."""
    return TdGuest(td.paths, calls=td.calls, sleep=td.sleep)


def test_making_one_touches_nothing(td: FakeTd) -> None:
    """Whoever only wants a quote needs neither registers nor logs."""
    backend = guest(td)
    assert isinstance(backend, RegisterExtender)
    backend.close()
    assert td.made == []
    assert not td.paths.runtime_log.exists()


def test_registers_and_log_are_the_guests(td: FakeTd) -> None:
    """Reading, extending, and a boot log that this guest has not."""
    backend = guest(td)
    backend.extend_rtmr(3, ONE.digest)
    assert backend.read_rtmr(3) == replay_from(bytes(48), (ONE,)) == td.rtmrs[3]
    assert [backend.read_rtmr(number) for number in range(3)] == td.rtmrs[:3]
    assert backend.read_event_log() == b""
    for call in (lambda: backend.read_rtmr(4), lambda: backend.extend_rtmr(1, ONE.digest)):
        with pytest.raises(UsageError):
            call()


# -- the journal -------------------------------------------------------------------------------


def test_events_are_in_register_and_log(td: FakeTd) -> None:
    """Also for the next program, which sees the same boot."""
    before = open_files()
    backend = guest(td)
    journal = backend.open_journal()
    journal.emit(ONE)
    journal.emit(TWO)
    assert journal.events() == (ONE, TWO)
    assert td.rtmrs[3] == replay_from(bytes(48), (ONE, TWO))
    assert td.extends == 2
    backend.close()
    assert open_files() == before
    assert guest(td).open_journal().events() == (ONE, TWO)
    stored = td.paths.runtime_log / "runtime_event.boot_id"
    assert stored.read_text() == f"{BOOT_ID}\n"


def test_every_call_is_the_same_journal(td: FakeTd) -> None:
    """The first one's version counts."""
    backend = guest(td)
    journal = backend.open_journal(2)
    assert backend.open_journal() is journal
    assert backend.open_journal(1) is journal
    assert journal.version == 2
    with pytest.raises(UsageError):
        journal.emit(ONE)  # an event of version 1


def test_the_register_is_read_from_a_fresh_report(td: FakeTd) -> None:
    """The file may be stale; the journal does not look at it."""
    guest(td).open_journal().emit(ONE)
    assert td.times(REPORT) > 0
    assert td.times("read rtmr3:sha384") == 0


def test_without_the_device_the_file_is_believed(td: FakeTd) -> None:
    """A container that was given the files alone can emit, too."""
    td.paths.tdx_guest.unlink()
    journal = guest(td).open_journal()
    journal.emit(ONE)
    journal.emit(TWO)
    assert td.rtmrs[3] == replay_from(bytes(48), (ONE, TWO))


def test_without_files_the_device_does_both(tmp_path: Path) -> None:
    """A kernel with the out-of-tree extension."""
    td = FakeTd(tmp_path, files=False, extends_by=(0x80315403,))
    guest(td).open_journal().emit(ONE)
    assert td.rtmrs[3] == replay_from(bytes(48), (ONE,))


def test_an_extend_of_somebody_else_is_noticed(td: FakeTd) -> None:
    """Nothing is emitted on a register that the log does not explain; the log stays as it was."""
    backend = guest(td)
    backend.open_journal().emit(ONE)
    td.extend(3, bytes(48))
    with pytest.raises(JournalError, match=td.rtmrs[3].hex()):
        backend.open_journal().emit(TWO)
    assert backend.open_journal().events() == (ONE,)
    assert td.extends == 2  # ONE, and the foreign one


def test_a_reboot_puts_the_log_aside(td: FakeTd) -> None:
    """Another boot id and a register of zeros: a new, empty log."""
    guest(td).open_journal().emit(ONE)
    td.paths.boot_id.write_text(BOOT_ID.replace("4", "5") + "\n")
    td.rtmrs[3] = bytes(48)
    backend = guest(td)
    assert backend.open_journal().events() == ()
    backend.open_journal().emit(TWO)
    assert backend.open_journal().events() == (TWO,)
    kept = [file.name for file in td.paths.runtime_log.iterdir() if BOOT_ID in file.name]
    assert kept == [f"runtime_events.log.{BOOT_ID}"]


def test_another_boot_with_a_register_in_use_is_refused(td: FakeTd) -> None:
    """As after a kexec: nothing explains the register any more."""
    guest(td).open_journal().emit(ONE)
    td.paths.boot_id.write_text(BOOT_ID.replace("4", "5"))
    backend = guest(td)
    assert backend.open_journal().events() == ()
    with pytest.raises(JournalError, match="disagree"):
        backend.open_journal().emit(TWO)
    assert td.extends == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EINVAL])
def test_a_refused_extend_leaves_nothing_behind(td: FakeTd, number: int) -> None:
    """The error comes out, and the next event finds register and log as they were."""
    backend = guest(td)
    td.fail[WRITE] = [number]
    with pytest.raises(BackendError, match=errno.errorcode[number]):
        backend.open_journal().emit(ONE)
    assert backend.open_journal().events() == ()
    assert not (td.paths.runtime_log / "runtime_event.pending").exists()
    backend.open_journal().emit(TWO)
    assert td.rtmrs[3] == replay_from(bytes(48), (TWO,))


@pytest.mark.parametrize("number", [errno.EIO, errno.EINTR])
def test_an_extend_that_failed_and_happened_is_in_the_log(td: FakeTd, number: int) -> None:
    """The register is believed rather than the call."""
    backend = guest(td)
    td.fail[WRITE] = [number + DONE]
    backend.open_journal().emit(ONE)
    assert backend.open_journal().events() == (ONE,)
    assert td.extends == 1


def test_threads_share_one_journal(td: FakeTd) -> None:
    """Opened by many at once it is one, and all events are in it."""
    backend = guest(td)
    start = threading.Barrier(8)
    events = [runtime_event(f"event {number}", b"") for number in range(8)]

    def emit(number: int) -> None:
        start.wait()
        backend.open_journal().emit(events[number])

    threads = [threading.Thread(target=emit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logged = backend.open_journal().events()
    assert sorted(event.name for event in logged) == sorted(event.name for event in events)
    assert td.rtmrs[3] == replay_from(bytes(48), logged)


def test_a_closed_backend_opens_no_journal(td: FakeTd) -> None:
    """And what was opened before is closed; twice is once."""
    backend = guest(td)
    journal = backend.open_journal()
    backend.close()
    backend.close()
    with pytest.raises(JournalError, match="closed"):
        journal.events()
    with pytest.raises(UsageError, match="closed"):
        backend.open_journal()


def test_threads_that_come_at_once_open_one_journal(td: FakeTd) -> None:
    """The second waits for the first, which takes its time."""
    opened = []
    second = threading.Event()

    def open_file(path: str | os.PathLike[str], flags: int, folder: int | None) -> int:
        opened.append(path)
        if len(opened) == 2:
            second.set()
        second.wait(0.2)  # enough for another thread to get here, if it can
        return td.open_file(path, flags, folder)

    backend = TdGuest(td.paths, calls=td.calls._replace(open_file=open_file))
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.append(backend.open_journal())) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is found[1]
    assert opened == [td.paths.boot_id]


def test_a_child_does_not_share_the_journal(td: FakeTd) -> None:
    """It would share its parent's lock; registers it can read.

    Nor does it wait for a thread that holds the lock of this object and was not forked with it.
    """
    backend = guest(td)
    journal = backend.open_journal()
    with journal.locked(), backend._mutex:
        child = os.fork()
        if not child:
            signal.alarm(20)  # should it wait after all
            code = 1
            try:
                assert backend.read_rtmr(3) == bytes(48)
                with pytest.raises(UsageError, match="fork"):
                    backend.open_journal()
                backend.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    journal.emit(ONE)  # the child's close took nothing from us


# -- the boot id -------------------------------------------------------------------------------


def test_the_boot_id_is_the_kernels(td: FakeTd) -> None:
    """Without its newline, which may be missing."""
    assert read_boot_id(td.paths) == BOOT_ID
    td.paths.boot_id.write_text(BOOT_ID)
    assert read_boot_id(td.paths) == BOOT_ID


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        BOOT_ID[:-1],
        f"{BOOT_ID}0",
        f"{BOOT_ID}\n\n",
        f" {BOOT_ID}",
        BOOT_ID.replace("-", "_"),
        BOOT_ID.replace("1", "g"),
        "x" * 10_000,
    ],
)
def test_another_text_is_no_boot_id(td: FakeTd, text: str) -> None:
    """It would put a good log aside, or take over a foreign one."""
    td.paths.boot_id.write_text(text)
    with pytest.raises(BackendError, match="no UUID"):
        guest(td).open_journal()
    assert not td.paths.runtime_log.exists()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EIO])
def test_no_boot_id_is_said(td: FakeTd, number: int) -> None:
    """The journal cannot be opened; the rest works."""
    td.fail["open boot_id"] = [number]
    with pytest.raises(BackendUnavailableError, match=errno.errorcode[number]) as caught:
        guest(td).open_journal()
    assert str(td.paths.boot_id) in str(caught.value)
    assert guest(td).read_rtmr(3) == bytes(48)
