"""RTMR access: reads, and extends that take effect at most once under any failure."""

import errno
import os
from pathlib import Path

import pytest

from attestkit.backends.tdx.device import BUSY_WAITS, TdxDevice
from attestkit.backends.tdx.rtmr import RtmrAccess
from attestkit.errors import (
    AttestKitError,
    BackendError,
    BackendUnavailableError,
    UnsupportedError,
    UsageError,
)
from tests.backends.tdx.fake_td import DONE, FakeTd, count_open_files, extend_register
from tests.raising import errno_of, raises
from tests.runner.cases import every_case
from tests.untyped import untyped

DIGEST = bytes(range(48))
FILE = "rtmr3:sha384"
WRITE = f"write {FILE}"
FIRST, SECOND = 0x80315403, 0x40315403
CALL, OTHER_CALL = f"ioctl {FIRST:#010x}", f"ioctl {SECOND:#010x}"
REPORT = "ioctl 0xc4405401"


def make_registers(td: FakeTd, *, named: bool = False) -> RtmrAccess:
    """Return the registers of a fake TD."""
    paths = td.paths._replace(measurements_configured=named)
    device = TdxDevice(paths.tdx_guest, calls=td.calls, sleep=td.sleep)
    return RtmrAccess(paths, device)


@pytest.fixture
def old(tmp_path: Path) -> FakeTd:
    """Return a TD without register files, whose driver extends by the first ioctl."""
    return FakeTd(tmp_path, files=False, extends_by=(FIRST,))


# -- reading -----------------------------------------------------------------------------------


def test_read_uses_register_files(td: FakeTd) -> None:
    """The device is not opened, and no descriptor is leaked."""
    before = count_open_files()
    assert [make_registers(td).read(number) for number in range(4)] == td.rtmrs
    assert "open tdx_guest" not in td.made
    assert count_open_files() == before


def test_read_without_files_uses_td_report(old: FakeTd) -> None:
    """Kernels before 6.16 have no register files."""
    assert [make_registers(old).read(number) for number in range(4)] == old.rtmrs


def test_read_fresh_makes_a_new_report(td: FakeTd) -> None:
    """Register files may be stale after extends by other means."""
    td.files = False  # the files are no longer updated
    td.extend(3, DIGEST)
    assert make_registers(td).read_fresh(3) == td.rtmrs[3] != make_registers(td).read(3)
    assert td.made[:2] == ["open tdx_guest", REPORT]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT])
def test_read_fresh_without_device_access_uses_file(td: FakeTd, number: int) -> None:
    """A container may have the register files only."""
    td.fail["open tdx_guest"] = [number]
    assert make_registers(td).read_fresh(3) == td.rtmrs[3]
    assert td.times(REPORT) == 0
    assert td.times(f"read {FILE}")


def test_read_fresh_report_error_is_final(td: FakeTd) -> None:
    """Once the device is open, the possibly stale file is not used."""
    td.fail[REPORT] = [errno.EIO]
    with raises(BackendError, "io_error", path=str(td.paths.tdx_guest)) as caught:
        make_registers(td).read_fresh(3)
    assert errno_of(caught.value) == errno.EIO
    assert td.times(f"read {FILE}") == 0


@pytest.mark.parametrize("number", [4, -1, True, 1.0, "3", None])
def test_register_number_is_checked(td: FakeTd, number: object) -> None:
    """Only 0 to 3 can be read, and 2 and 3 extended; nothing else is opened."""
    for call in (make_registers(td).read, make_registers(td).read_fresh):
        with raises(UsageError, "out_of_range"):
            call(untyped(number))
    with raises(UsageError, "out_of_range"):
        make_registers(td).extend(untyped(number), DIGEST)
    assert td.made == []


@pytest.mark.parametrize("size", [0, 47, 49, 96])
def test_read_file_of_wrong_size_is_malformed(td: FakeTd, size: int) -> None:
    """A value of other than 48 bytes is neither padded nor truncated."""
    (td.paths.measurements / FILE).write_bytes(bytes(size))
    with raises(BackendError, "malformed_response", path=str(td.paths.measurements / FILE)):
        make_registers(td).read(3)


def test_read_without_files_and_device_names_both(old: FakeTd) -> None:
    """The error has both paths."""
    old.paths.tdx_guest.unlink()
    with raises(
        BackendUnavailableError, "missing", path=str(old.paths.tdx_guest), part="Linux 6.16"
    ):
        make_registers(old).read(3)


# -- extending by the file ---------------------------------------------------------------------


@pytest.mark.parametrize("register", [2, 3])
def test_extend_by_file_is_one_write(td: FakeTd, register: int) -> None:
    """48 bytes are written at offset 0; the ioctl is not called."""
    td.extends_by = (FIRST, SECOND)
    expected = extend_register(td.rtmrs[register], DIGEST)
    others = td.rtmrs[:register] + td.rtmrs[register + 1 :]
    before = count_open_files()
    make_registers(td).extend(register, DIGEST)
    assert td.rtmrs[register] == expected
    assert td.rtmrs[:register] + td.rtmrs[register + 1 :] == others
    assert td.extends == td.times(f"write rtmr{register}:sha384") == 1
    assert td.times(CALL) == td.times(OTHER_CALL) == 0
    assert count_open_files() == before


@pytest.mark.parametrize("register", [0, 1])
def test_extend_firmware_register_is_rejected(td: FakeTd, register: int) -> None:
    """The kernel would allow root to extend RTMR0 and RTMR1."""
    with raises(UsageError, "out_of_range"):
        make_registers(td).extend(register, DIGEST)
    assert td.made == []


@pytest.mark.parametrize("digest", [b"", bytes(47), bytes(49), bytearray(48), "0" * 48, None])
def test_extend_digest_must_be_48_bytes(td: FakeTd, digest: object) -> None:
    """It is checked before the kernel is called."""
    with raises(UsageError, "wrong_size"):
        make_registers(td).extend(3, untyped(digest))
    assert td.made == []


@pytest.mark.parametrize("number", [errno.EINTR, errno.EBUSY])
@pytest.mark.parametrize("times", [1, len(BUSY_WAITS)])
def test_extend_is_retried_if_register_is_unchanged(td: FakeTd, number: int, times: int) -> None:
    """The register is read after each failure; it is extended once."""
    td.fail[WRITE] = [number] * times
    expected = extend_register(td.rtmrs[3], DIGEST)
    make_registers(td).extend(3, DIGEST)
    assert td.rtmrs[3] == expected
    assert td.extends == 1
    assert td.times(REPORT) == 1 + times  # once before, and once after each failure
    assert td.slept == (list(BUSY_WAITS[:times]) if number == errno.EBUSY else [])


@pytest.mark.parametrize("number", [errno.EINTR, errno.EBUSY])
def test_extend_applied_despite_retryable_error_succeeds(td: FakeTd, number: int) -> None:
    """The register's value decides, so it is extended once."""
    td.fail[WRITE] = [number + DONE] * 2
    expected = extend_register(td.rtmrs[3], DIGEST)
    make_registers(td).extend(3, DIGEST)
    assert td.rtmrs[3] == expected
    assert td.extends == td.times(WRITE) == 1


def test_extend_applied_despite_other_error_is_not_repeated(td: FakeTd) -> None:
    """The error is raised; the caller can read the register."""
    td.fail[WRITE] = [errno.EIO + DONE]
    with raises(BackendError, "io_error") as caught:
        make_registers(td).extend(3, DIGEST)
    assert errno_of(caught.value) == errno.EIO
    assert td.extends == td.times(WRITE) == 1


def test_extend_with_concurrent_foreign_extend_is_unknown(td: FakeTd) -> None:
    """If the register has neither the old nor the expected value, nothing is retried."""

    def write(fd: int, data: bytes) -> int:
        del fd, data
        td.made.append(WRITE)
        td.extend(3, bytes(48))
        raise OSError(errno.EBUSY, "")

    td.calls = td.calls._replace(write=write)
    before = td.rtmrs[3].hex()
    with raises(BackendError, "register_conflict") as caught:
        make_registers(td).extend(3, DIGEST)
    assert td.times(WRITE) == 1
    for value in (before, td.rtmrs[3].hex(), DIGEST.hex()):
        assert value in str(caught.value)


@pytest.mark.parametrize("taken", [0, 47])
def test_extend_short_write_is_not_completed(td: FakeTd, taken: int) -> None:
    """A second write would be another extend."""

    def write(fd: int, data: bytes) -> int:
        del fd, data
        td.made.append(WRITE)
        return taken

    td.calls = td.calls._replace(write=write)
    with raises(BackendError, "outcome_unknown"):
        make_registers(td).extend(3, DIGEST)
    assert td.times(WRITE) == 1


def test_extend_needs_a_readable_register(td: FakeTd) -> None:
    """Without the previous value, the outcome of a failed extend would be unknown."""
    td.fail[REPORT] = [errno.EIO]
    with pytest.raises(BackendError):
        make_registers(td).extend(3, DIGEST)
    assert td.extends == 0


# -- extending by the ioctl --------------------------------------------------------------------


@pytest.mark.parametrize("register", [2, 3])
def test_extend_without_directory_uses_first_ioctl(old: FakeTd, register: int) -> None:
    """The argument is the digest, then the register's number."""
    expected = extend_register(old.rtmrs[register], DIGEST)
    before = count_open_files()
    make_registers(old).extend(register, DIGEST)
    assert old.rtmrs[register] == expected
    assert old.extends == old.times(CALL) == 1
    assert old.times(OTHER_CALL) == 0
    assert count_open_files() == before


def test_extend_second_ioctl_is_tried_after_enotty(tmp_path: Path) -> None:
    """ENOTTY proves that the first ioctl had no effect."""
    td = FakeTd(tmp_path, files=False, extends_by=(SECOND,))
    expected = extend_register(td.rtmrs[3], DIGEST)
    make_registers(td).extend(3, DIGEST)
    assert td.rtmrs[3] == expected
    assert td.extends == td.times(CALL) == td.times(OTHER_CALL) == 1


def test_extend_unsupported_kernel_names_required_version(tmp_path: Path) -> None:
    """Linux 6.2 to 6.15 supports neither ioctl."""
    td = FakeTd(tmp_path, files=False)
    with raises(UnsupportedError, "no_registers", part="Linux 6.16"):
        make_registers(td).extend(3, DIGEST)
    assert td.times(CALL) == td.times(OTHER_CALL) == 1
    assert td.extends == 0


@every_case("number", sorted(set(errno.errorcode) - {errno.ENOTTY}))
def test_extend_other_errno_never_tries_second_ioctl(old: FakeTd, number: int) -> None:
    """Whether or not the first ioctl took effect, there is at most one extend."""
    for due in (number, number + DONE):
        old.fail[CALL] = [due] * 100
        old.made.clear()
        before = old.extends
        found = None
        try:
            make_registers(old).extend(3, DIGEST)
        except AttestKitError as error:
            found = errno_of(error)
        done = due > DONE and number in (errno.EINTR, errno.EBUSY)
        assert done or found == number
        assert old.extends - before == (due > DONE)
        assert old.times(OTHER_CALL) == 0


@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (errno.EACCES, BackendUnavailableError, "permission_denied"),
        (errno.EPERM, BackendUnavailableError, "permission_denied"),
        (errno.ENOTDIR, BackendUnavailableError, "missing"),
        (errno.EIO, BackendError, "io_error"),
    ],
)
def test_extend_ioctl_needs_missing_directory(
    td: FakeTd, number: int, kind: type[BackendError], reason: str
) -> None:
    """A directory that exists but cannot be opened is an error."""
    td.extends_by = (FIRST, SECOND)
    td.fail["open measurements"] = [number]
    with raises(kind, reason, path=str(td.paths.measurements)) as caught:
        make_registers(td).extend(3, DIGEST)
    assert errno_of(caught.value) == number
    assert td.times(CALL) == td.times(OTHER_CALL) == td.extends == 0


def test_extend_missing_file_does_not_use_ioctl(td: FakeTd) -> None:
    """ENOENT for the file differs from ENOENT for the directory."""
    td.extends_by = (FIRST, SECOND)
    (td.paths.measurements / FILE).unlink()
    with raises(BackendUnavailableError, "missing", path=str(td.paths.measurements / FILE)):
        make_registers(td).extend(3, DIGEST)
    assert td.times(CALL) == td.times(OTHER_CALL) == td.extends == 0


def test_extend_ioctl_unexpected_result_is_unknown(old: FakeTd) -> None:
    """Nothing is tried after it."""

    def ioctl(fd: int, command: int, buffer: bytearray) -> int:
        return old.ioctl(fd, command, buffer) or int(command == FIRST)

    old.calls = old.calls._replace(ioctl=ioctl)
    with raises(BackendError, "outcome_unknown"):
        make_registers(old).extend(3, DIGEST)
    assert old.extends == 1


# -- configured directory ----------------------------------------------------------------------


def test_configured_directory_missing_is_an_error(old: FakeTd) -> None:
    """Neither the report nor the ioctl is a fallback."""
    configured = make_registers(old, named=True)
    with raises(BackendUnavailableError, "missing", path=str(old.paths.measurements)):
        configured.read(3)
    with raises(
        BackendUnavailableError,
        "missing",
        path=str(old.paths.measurements),
        part="unset DCAP_TDX_RTMR_SYSFS_PATH",
    ):
        configured.extend(3, DIGEST)
    assert old.extends == old.times(CALL) == 0


def test_configured_directory_without_file_is_an_error(td: FakeTd) -> None:
    """Neither the report nor the ioctl is a fallback."""
    td.extends_by = (FIRST,)
    (td.paths.measurements / FILE).unlink()
    configured = make_registers(td, named=True)
    file = str(td.paths.measurements / FILE)
    with raises(BackendUnavailableError, "missing", path=file):
        configured.read(3)
    with raises(BackendUnavailableError, "missing", path=file):
        configured.extend(3, DIGEST)
    assert td.extends == 0


# -- real system calls -------------------------------------------------------------------------


def test_extend_writes_at_offset_0(td: FakeTd) -> None:
    """With real system calls, 48 bytes are replaced and none appended."""
    os.truncate(td.paths.measurements / FILE, 48)
    device = TdxDevice(td.paths.measurements / "none")
    RtmrAccess(td.paths, device).extend(3, DIGEST)
    assert (td.paths.measurements / FILE).read_bytes() == DIGEST
