"""TdGuest, shared by both TDX backends: registers, boot log, and the runtime event journal."""

import errno
import os
import signal
import threading

import pytest

from attestkit.backends.base import RegisterExtender
from attestkit.backends.linux.guest_logs import read_boot_id
from attestkit.backends.tdx.rtmr import TdGuest
from attestkit.errors import BackendError, BackendUnavailableError, JournalError, UsageError
from attestkit.event_log.journal import replay_from
from attestkit.event_log.runtime_events import runtime_event
from tests.backends.tdx.fake_td import BOOT_ID, FakeTd, count_open_files
from tests.raising import errno_of, raises

ONE, TWO = runtime_event("one", b"1"), runtime_event("two", b"2")
REPORT = "ioctl 0xc4405401"
WRITE = "write rtmr3:sha384"


def make_guest(td: FakeTd) -> TdGuest:
    """Return the guest of a fake TD."""
    return TdGuest(td.paths, calls=td.calls, sleep=td.sleep)


def test_guest_construction_opens_nothing(td: FakeTd) -> None:
    """Quotes need neither registers nor logs."""
    backend = make_guest(td)
    assert isinstance(backend, RegisterExtender)
    backend.close()
    assert td.made == []
    assert not td.paths.runtime_log.exists()


def test_guest_reads_and_extends_registers(td: FakeTd) -> None:
    """A guest without a CCEL table has an empty boot log."""
    backend = make_guest(td)
    backend.extend_rtmr(3, ONE.digest)
    assert backend.read_rtmr(3) == replay_from(bytes(48), (ONE,)) == td.rtmrs[3]
    assert [backend.read_rtmr(number) for number in range(3)] == td.rtmrs[:3]
    assert backend.read_event_log() == b""
    for call in (lambda: backend.read_rtmr(4), lambda: backend.extend_rtmr(1, ONE.digest)):
        with pytest.raises(UsageError):
            call()


# -- the journal -------------------------------------------------------------------------------


def test_journal_events_are_in_register_and_log(td: FakeTd) -> None:
    """A later process of the same boot reads the same events."""
    before = count_open_files()
    backend = make_guest(td)
    journal = backend.open_journal()
    journal.emit(ONE)
    journal.emit(TWO)
    assert journal.events() == (ONE, TWO)
    assert td.rtmrs[3] == replay_from(bytes(48), (ONE, TWO))
    assert td.extends == 2
    backend.close()
    assert count_open_files() == before
    assert make_guest(td).open_journal().events() == (ONE, TWO)
    stored = td.paths.runtime_log / "runtime_event.boot_id"
    assert stored.read_text() == f"{BOOT_ID}\n"


def test_open_journal_returns_the_same_journal(td: FakeTd) -> None:
    """The version of the first call is kept."""
    backend = make_guest(td)
    journal = backend.open_journal(2)
    assert backend.open_journal() is journal
    assert backend.open_journal(1) is journal
    assert journal.version == 2
    with pytest.raises(UsageError):
        journal.emit(ONE)  # an event of version 1


def test_journal_reads_register_from_fresh_report(td: FakeTd) -> None:
    """The register file may be stale, so the journal does not read it."""
    make_guest(td).open_journal().emit(ONE)
    assert td.times(REPORT) > 0
    assert td.times("read rtmr3:sha384") == 0


def test_journal_without_device_reads_register_file(td: FakeTd) -> None:
    """A container may have the register files only."""
    td.paths.tdx_guest.unlink()
    journal = make_guest(td).open_journal()
    journal.emit(ONE)
    journal.emit(TWO)
    assert td.rtmrs[3] == replay_from(bytes(48), (ONE, TWO))


def test_closed_guest_rejects_the_journal(td: FakeTd) -> None:
    """Close also closes an open journal, and is idempotent."""
    backend = make_guest(td)
    journal = backend.open_journal()
    backend.close()
    backend.close()
    with pytest.raises(JournalError, match="closed"):
        journal.events()
    with raises(UsageError, "closed"):
        backend.open_journal()


def test_open_journal_concurrently_opens_one_log(td: FakeTd) -> None:
    """A second thread waits for the first."""
    opened = []
    second = threading.Event()

    def open_file(path: str | os.PathLike[str], flags: int, folder: int | None) -> int:
        opened.append(path)
        if len(opened) == 2:
            second.set()
        second.wait(0.2)  # long enough for another thread to reach this point
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


def test_forked_child_does_not_share_the_journal(td: FakeTd) -> None:
    """A child would share its parent's lock; it can still read registers.

    The child does not wait for a lock that a thread of the parent held during the fork.
    """
    backend = make_guest(td)
    journal = backend.open_journal()
    with journal.locked(), backend._runtime_log._mutex:
        child = os.fork()
        if not child:
            signal.alarm(20)  # end the child if it waits for the lock
            code = 1
            try:
                assert backend.read_rtmr(3) == bytes(48)
                with raises(UsageError, "wrong_process"):
                    backend.open_journal()
                backend.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    journal.emit(ONE)  # the child's close did not affect the parent


# -- the boot id -------------------------------------------------------------------------------


def test_boot_id_is_read_without_newline(td: FakeTd) -> None:
    """The newline may be missing."""
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
def test_boot_id_malformed_is_rejected(td: FakeTd, text: str) -> None:
    """A wrong boot ID could archive a valid log, or adopt one of another boot."""
    td.paths.boot_id.write_text(text)
    with raises(BackendError, "malformed_response", path=str(td.paths.boot_id)):
        make_guest(td).open_journal()
    assert not td.paths.runtime_log.exists()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EIO])
def test_boot_id_unreadable_prevents_the_journal_only(td: FakeTd, number: int) -> None:
    """Registers stay readable."""
    td.fail["open boot_id"] = [number]
    with raises(BackendUnavailableError, "unreadable", path=str(td.paths.boot_id)) as caught:
        make_guest(td).open_journal()
    assert errno_of(caught.value) == number
    assert make_guest(td).read_rtmr(3) == bytes(48)
