"""The TDX device: a report or an error that says what to do, and no call too many."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from attestkit.backends.linux.syscalls import DeviceCalls
from attestkit.backends.tdx.device import BUSY_WAITS, GET_REPORT0, MEANINGS, Command, TdxDevice
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    UsageError,
)
from tests.backends.tdx.fake_td import FakeTd, open_files
from tests.untyped import untyped

ASKED = bytes(range(64))
CALL = "ioctl 0xc4405401"


@pytest.fixture
def td(tmp_path: Path) -> FakeTd:
    """Return a TDX guest."""
    return FakeTd(tmp_path)


def device(td: FakeTd) -> TdxDevice:
    """Return its device."""
    return TdxDevice(td.paths.tdx_guest, td.paths.old_nodes, calls=td.calls, sleep=td.sleep)


def test_a_report_is_the_devices_own(td: FakeTd) -> None:
    """64 bytes in, 1024 bytes out, one call, and nothing stays open."""
    before = open_files()
    report = device(td).get_report(ASKED)
    assert type(report) is bytes
    assert report == td.report(ASKED)
    assert td.made == ["open tdx_guest", CALL]
    assert open_files() == before


def test_it_is_opened_for_reading_and_writing_and_not_inherited(td: FakeTd) -> None:
    """As the driver's rules have it."""
    import fcntl

    with device(td).opened() as fd:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@pytest.mark.parametrize("asked", [b"", bytes(63), bytes(65), bytearray(64), "0" * 64, None])
def test_other_report_data_is_the_callers_mistake(td: FakeTd, asked: object) -> None:
    """Nothing is padded, and the device is not asked."""
    with pytest.raises(UsageError, match="64 bytes"):
        device(td).get_report(untyped(asked))
    assert td.made == []


ERRORS = [
    (errno.EFAULT, BackendError, "could not use our buffer"),
    (errno.ENOMEM, BackendError, "no memory"),
    (errno.EINVAL, BackendError, "operand is invalid"),
    (errno.EIO, BackendError, "call into the TDX module failed"),
    (errno.ENOTTY, BackendUnavailableError, "does not know this command"),
    (errno.EPERM, BackendUnavailableError, "security policy"),
    (errno.EACCES, BackendUnavailableError, "security policy"),
    (errno.EXDEV, BackendError, "not known to say this"),
]


@pytest.mark.parametrize(("number", "kind", "text"), ERRORS)
def test_each_errno_has_its_text_and_is_not_repeated(
    td: FakeTd, number: int, kind: type[BackendError], text: str
) -> None:
    """The error says what it means and where, and keeps the foreign one as its cause."""
    before = open_files()
    td.fail[CALL] = [number]
    with pytest.raises(BackendError, match=text) as caught:
        device(td).get_report(ASKED)
    assert type(caught.value) is kind
    assert errno.errorcode[number] in str(caught.value)
    assert str(td.paths.tdx_guest) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert td.times(CALL) == 1
    assert open_files() == before


def test_texts_differ() -> None:
    """No two errnos read alike, but for the two that a policy says; and the table is whole."""
    assert {number for number, _, _ in ERRORS} | {errno.EBUSY, errno.EINTR} > MEANINGS.keys()
    texts = {text for number, (_, text) in MEANINGS.items() if number != errno.EACCES}
    assert len(texts) == len(MEANINGS) - 1


def test_a_signal_is_survived(td: FakeTd) -> None:
    """EINTR is no answer: the call is made again, without waiting."""
    td.fail[CALL] = [errno.EINTR] * 7
    assert device(td).get_report(ASKED) == td.report(ASKED)
    assert td.times(CALL) == 8
    assert td.slept == []


def test_signals_without_end_are_an_end(td: FakeTd) -> None:
    """A timer that interrupts every call does not hold us for ever."""
    td.fail[CALL] = [errno.EINTR] * 10_000
    with pytest.raises(BackendBusyError, match="signals"):
        device(td).get_report(ASKED)
    assert td.times(CALL) == 101


def test_a_busy_module_is_asked_again_after_a_while(td: FakeTd) -> None:
    """EBUSY is waited for, a little longer each time."""
    td.fail[CALL] = [errno.EBUSY] * len(BUSY_WAITS)
    assert device(td).get_report(ASKED) == td.report(ASKED)
    assert td.slept == list(BUSY_WAITS)


def test_a_module_that_stays_busy_is_busy(td: FakeTd) -> None:
    """After a few tries, within a second, the caller is told to come back."""
    td.fail[CALL] = [errno.EBUSY] * 1000
    with pytest.raises(BackendBusyError, match="stays busy"):
        device(td).get_report(ASKED)
    assert td.times(CALL) == 1 + len(BUSY_WAITS)
    assert 0 < sum(td.slept) < 1


def test_each_try_starts_with_a_fresh_argument(td: FakeTd) -> None:
    """What a failed call left in the buffer does not get into the next."""
    seen = []

    def spoil(fd: int, command: int, buffer: bytearray) -> int:
        seen.append(bytes(buffer))
        if len(seen) < 3:
            buffer[:] = b"\xff" * len(buffer)
            raise OSError(errno.EINTR, "")
        return td.ioctl(fd, command, buffer)

    calls = td.calls._replace(ioctl=spoil)
    assert TdxDevice(td.paths.tdx_guest, calls=calls).get_report(ASKED) == td.report(ASKED)
    assert set(seen) == {ASKED + bytes(1024)}


def answering(td: FakeTd, change: Callable[[bytearray], None], result: int = 0) -> DeviceCalls:
    """Return calls whose answer is altered."""

    def ioctl(fd: int, command: int, buffer: bytearray) -> int:
        td.ioctl(fd, command, buffer)
        change(buffer)
        return result

    return td.calls._replace(ioctl=ioctl)


@pytest.mark.parametrize("at", [64, 64 + 128, 64 + 191])
def test_an_answer_that_is_no_report_of_ours_is_refused(td: FakeTd, at: int) -> None:
    """Another type, or other report data, in its first and in its last byte."""

    def change(buffer: bytearray) -> None:
        buffer[at] ^= 1

    with pytest.raises(BackendError, match=r"type 0x80|other report data"):
        TdxDevice(td.paths.tdx_guest, calls=answering(td, change)).get_report(ASKED)


def test_a_result_that_is_neither_success_nor_error_is_refused(td: FakeTd) -> None:
    """The call returns 0 or fails."""
    calls = answering(td, lambda _: None, result=1)
    with pytest.raises(BackendError, match="returned 1, not 0"):
        TdxDevice(td.paths.tdx_guest, calls=calls).get_report(ASKED)


# -- opening -----------------------------------------------------------------------------------


def test_no_device_is_said_with_what_to_do(td: FakeTd) -> None:
    """No TDX guest, no driver, no --device: one text for what cannot be told apart."""
    td.paths.tdx_guest.unlink()
    with pytest.raises(BackendUnavailableError, match=r"modprobe tdx-guest.*--device") as caught:
        device(td).get_report(ASKED)
    assert "ENOENT" in str(caught.value)


@pytest.mark.parametrize("which", [0, 1])
def test_a_node_of_an_old_driver_is_named_and_not_used(td: FakeTd, which: int) -> None:
    """Its commands have other meanings under the same numbers."""
    td.paths.tdx_guest.unlink()
    node = td.paths.old_nodes[which]
    node.touch()
    with pytest.raises(BackendUnavailableError, match="driver too old") as caught:
        device(td).get_report(ASKED)
    assert str(node) in str(caught.value)
    assert td.made == ["open tdx_guest"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_refusal_names_path_mode_owner_and_us(td: FakeTd, number: int) -> None:
    """All that somebody needs to let us in."""
    td.paths.tdx_guest.chmod(0o640)
    owner = td.paths.tdx_guest.stat()
    td.fail["open tdx_guest"] = [number]
    with pytest.raises(BackendUnavailableError) as caught:
        device(td).get_report(ASKED)
    text = str(caught.value)
    assert str(td.paths.tdx_guest) in text
    assert "mode 0640" in text
    assert f"owner uid {owner.st_uid}, group {owner.st_gid}" in text
    assert f"we are uid {os.geteuid()}" in text
    assert stat.S_IMODE(owner.st_mode) == 0o640


@pytest.mark.parametrize("number", [errno.ENXIO, errno.ENODEV, errno.ENOTDIR])
def test_a_node_without_driver_is_as_none(td: FakeTd, number: int) -> None:
    """A stale node says the same as a missing one."""
    td.fail["open tdx_guest"] = [number]
    with pytest.raises(BackendUnavailableError, match="modprobe"):
        device(td).get_report(ASKED)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ELOOP])
def test_other_failures_to_open_are_no_missing_tee(td: FakeTd, number: int) -> None:
    """Too many open files does not mean that there is no TEE."""
    td.fail["open tdx_guest"] = [number]
    with pytest.raises(BackendError, match=errno.errorcode[number]) as caught:
        device(td).get_report(ASKED)
    assert type(caught.value) is BackendError


def test_what_is_no_driver_at_all_is_unavailable(tmp_path: Path) -> None:
    """A plain file in the device's place, asked by the real call."""
    node = tmp_path / "tdx_guest"
    node.touch()
    with pytest.raises(BackendUnavailableError, match="ENOTTY"):
        TdxDevice(node).get_report(ASKED)


def test_a_command_says_how_often_it_is_repeated(td: FakeTd) -> None:
    """One that starts something at the host is not repeated as often as a local one."""
    td.fail[CALL] = [errno.EINTR] * 5
    with device(td).opened() as fd, pytest.raises(BackendBusyError):
        device(td).command(
            fd, Command("X", GET_REPORT0, interruptions=1), lambda: bytearray(64 + 1024)
        )
    assert td.times(CALL) == 2
