"""TDX device: TD reports, the meaning of each errno, and the numbers of its ioctls."""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from attestkit.backends import tdx_ioctl
from attestkit.backends.linux.device_errors import Meaning
from attestkit.backends.linux.syscalls import DeviceCalls, size_of
from attestkit.backends.tdx import device, qgs, rtmr
from attestkit.backends.tdx.device import MEANINGS, TdxDevice
from attestkit.backends.tdx_ioctl import GENERATIONS
from attestkit.backends.tsm import configfs_files
from attestkit.errors import (
    BackendError,
    BackendUnavailableError,
    UsageError,
)
from tests.backends.tdx.fake_td import FakeTd, count_open_files
from tests.raising import errno_of, raises
from tests.runner.cases import every_case
from tests.untyped import untyped

REPORT_DATA = bytes(range(64))
CALL = "ioctl 0xc4405401"


def make_device(td: FakeTd) -> TdxDevice:
    """Return the device of a fake TD."""
    return TdxDevice(td.paths.tdx_guest, td.paths.old_nodes, calls=td.calls, sleep=td.sleep)


def test_get_report_returns_the_device_report(td: FakeTd) -> None:
    """One ioctl takes 64 bytes and returns 1024; no descriptor is leaked."""
    before = count_open_files()
    report = make_device(td).get_report(REPORT_DATA)
    assert type(report) is bytes
    assert report == td.report(REPORT_DATA)
    assert td.made == ["open tdx_guest", CALL]
    assert count_open_files() == before


def test_device_is_opened_read_write_and_close_on_exec(td: FakeTd) -> None:
    """The driver requires read and write access."""
    import fcntl

    with make_device(td).open() as fd:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@pytest.mark.parametrize("report_data", [b"", bytes(63), bytes(65), bytearray(64), "0" * 64, None])
def test_get_report_invalid_report_data_is_rejected(td: FakeTd, report_data: object) -> None:
    """Report data is not padded, and the device is not opened."""
    with raises(UsageError, "wrong_size"):
        make_device(td).get_report(untyped(report_data))
    assert td.made == []


@every_case(
    "meanings",
    [
        MEANINGS.values(),
        rtmr.FILE_MEANINGS.values(),
        rtmr._EXTEND_MEANINGS.values(),
        tdx_ioctl._QUOTE_MEANINGS.values(),
        qgs._CONNECT_MEANINGS.values(),
        configfs_files._COMMON.values(),
        *[meanings.values() for meanings in configfs_files._OF_STEP.values()],
        *[meanings.values() for meanings in configfs_files._OF_REPORT.values()],
    ],
)
def test_errno_reasons_belong_to_their_class(
    meanings: Iterable[Meaning],
) -> None:
    """Type checkers only see that each reason is one of BackendError's."""
    for make, reason, _ in meanings:
        assert reason in make("path", "problem", reason).reasons()


def test_get_report_retry_uses_a_fresh_buffer(td: FakeTd) -> None:
    """Data that a failed call left in the buffer is not sent again."""
    seen = []

    def spoil(fd: int, command: int, buffer: bytearray) -> int:
        seen.append(bytes(buffer))
        if len(seen) < 3:
            buffer[:] = b"\xff" * len(buffer)
            raise OSError(errno.EINTR, "")
        return td.ioctl(fd, command, buffer)

    calls = td.calls._replace(ioctl=spoil)
    assert TdxDevice(td.paths.tdx_guest, calls=calls).get_report(REPORT_DATA) == td.report(
        REPORT_DATA
    )
    assert set(seen) == {REPORT_DATA + bytes(1024)}


def altered_calls(td: FakeTd, change: Callable[[bytearray], None], result: int = 0) -> DeviceCalls:
    """Return calls whose response is altered."""

    def ioctl(fd: int, command: int, buffer: bytearray) -> int:
        td.ioctl(fd, command, buffer)
        change(buffer)
        return result

    return td.calls._replace(ioctl=ioctl)


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        (64, "malformed_response"),
        (64 + 128, "wrong_report_data"),
        (64 + 191, "wrong_report_data"),
    ],
)
def test_get_report_checks_type_and_report_data(td: FakeTd, at: int, reason: str) -> None:
    """A response of another type, or over other report data, is rejected."""

    def change(buffer: bytearray) -> None:
        buffer[at] ^= 1

    with raises(BackendError, reason, path=str(td.paths.tdx_guest)):
        TdxDevice(td.paths.tdx_guest, calls=altered_calls(td, change)).get_report(REPORT_DATA)


def test_get_report_unexpected_result_is_malformed(td: FakeTd) -> None:
    """The ioctl must return 0 or fail."""
    calls = altered_calls(td, lambda _: None, result=1)
    with raises(BackendError, "malformed_response"):
        TdxDevice(td.paths.tdx_guest, calls=calls).get_report(REPORT_DATA)


# -- opening -----------------------------------------------------------------------------------


def test_open_missing_device_names_the_remedies(td: FakeTd) -> None:
    """A missing device can mean no TDX guest, no driver or no `--device`."""
    td.paths.tdx_guest.unlink()
    with raises(BackendUnavailableError, "missing", path=str(td.paths.tdx_guest)) as caught:
        make_device(td).get_report(REPORT_DATA)
    assert errno_of(caught.value) == errno.ENOENT
    for part in ("ENOENT", "modprobe tdx-guest", f"--device {td.paths.tdx_guest}"):
        assert part in str(caught.value)


@pytest.mark.parametrize("which", [0, 1])
def test_open_old_device_node_is_unsupported(td: FakeTd, which: int) -> None:
    """Older drivers use the same ioctl numbers for other commands."""
    td.paths.tdx_guest.unlink()
    node = td.paths.old_nodes[which]
    node.touch()
    with raises(BackendUnavailableError, "unsupported_kernel", part=str(node)):
        make_device(td).get_report(REPORT_DATA)
    assert td.made == ["open tdx_guest"]


@pytest.mark.parametrize("number", [errno.ENXIO, errno.ENODEV, errno.ENOTDIR])
def test_open_node_without_driver_is_missing(td: FakeTd, number: int) -> None:
    """A stale node is reported like a missing one."""
    td.fail["open tdx_guest"] = [number]
    with raises(BackendUnavailableError, "missing"):
        make_device(td).get_report(REPORT_DATA)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ELOOP])
def test_open_other_errors_are_not_unavailable(td: FakeTd, number: int) -> None:
    """EMFILE, for example, does not prove a missing TEE."""
    td.fail["open tdx_guest"] = [number]
    with raises(BackendError, "io_error", path=str(td.paths.tdx_guest)) as caught:
        make_device(td).get_report(REPORT_DATA)
    assert errno_of(caught.value) == number


def test_ordinary_file_as_device_is_unsupported(tmp_path: Path) -> None:
    """A regular file returns ENOTTY to the real ioctl."""
    node = tmp_path / "tdx_guest"
    node.touch()
    with raises(BackendUnavailableError, "unsupported_kernel", path=str(node)) as caught:
        TdxDevice(node).get_report(REPORT_DATA)
    assert errno_of(caught.value) == errno.ENOTTY


@every_case(
    ("computed", "literal", "size"),
    [
        (device.GET_REPORT0, 0xC4405401, 64 + 1024),
        (rtmr.EXTEND_RTMR, 0x80315403, 48 + 1),
        (rtmr.EXTEND_RTMR_V3, 0x40315403, 48 + 1),
        (GENERATIONS["C"].number, 0x80105404, 8 + 8),
        (GENERATIONS["C'"].number, 0xC0105404, 8 + 8),
        (GENERATIONS["D"].number, 0xC0105402, 8 + 8),
        (GENERATIONS["D'"].number, 0x80105402, 8 + 8),
    ],
)
def test_ioctl_number_matches_headers(computed: int, literal: int, size: int) -> None:
    """Direction, size, type and number give the literal of the headers."""
    assert computed == literal
    assert size_of(computed) == size


def test_qgs_codes_and_sizes_match_specification() -> None:
    """The seven error codes, and the limits of a message."""
    assert list(qgs.CODES) == list(range(0x12001, 0x12008))
    assert (qgs.SHORTEST_MESSAGE, qgs.LONGEST_MESSAGE) == (16, 1024 * 1024)
