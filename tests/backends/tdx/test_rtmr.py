"""Registers are read as they are, and extended once for one call: never twice, whatever fails."""

import errno
import os
from pathlib import Path

import pytest

from attestkit.backends.tdx.device import BUSY_WAITS, TdxDevice
from attestkit.backends.tdx.rtmr import Rtmrs
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    UnsupportedError,
    UsageError,
)
from tests.backends.tdx.fake_td import DONE, FakeTd, extended, open_files
from tests.untyped import untyped

DIGEST = bytes(range(48))
FILE = "rtmr3:sha384"
WRITE = f"write {FILE}"
FIRST, SECOND = 0x80315403, 0x40315403
CALL, OTHER_CALL = f"ioctl {FIRST:#010x}", f"ioctl {SECOND:#010x}"
REPORT = "ioctl 0xc4405401"


def registers(td: FakeTd, *, named: bool = False) -> Rtmrs:
    """Return what is tested, on a fake TD."""
    paths = td.paths._replace(measurements_named=named)
    device = TdxDevice(paths.tdx_guest, calls=td.calls, sleep=td.sleep)
    return Rtmrs(paths, device, calls=td.calls, sleep=td.sleep)


@pytest.fixture
def td(tmp_path: Path) -> FakeTd:
    """Return a TD of Linux 6.16 or later: it has register files."""
    return FakeTd(tmp_path)


@pytest.fixture
def old(tmp_path: Path) -> FakeTd:
    """Return a TD without register files, whose driver extends by the first form of the ioctl."""
    return FakeTd(tmp_path, files=False, extends_by=(FIRST,))


# -- reading -----------------------------------------------------------------------------------


def test_registers_are_read_from_their_files(td: FakeTd) -> None:
    """Each from its own; the device is not asked, and nothing stays open."""
    before = open_files()
    assert [registers(td).read(number) for number in range(4)] == td.rtmrs
    assert "open tdx_guest" not in td.made
    assert open_files() == before


def test_without_files_a_report_tells(old: FakeTd) -> None:
    """A kernel before 6.16 has the registers in its reports."""
    assert [registers(old).read(number) for number in range(4)] == old.rtmrs


def test_fresh_is_from_a_new_report(td: FakeTd) -> None:
    """The files may show late what was not extended through them; a report is made now."""
    td.files = False  # the files are not brought up to date any more
    td.extend(3, DIGEST)
    assert registers(td).read_fresh(3) == td.rtmrs[3] != registers(td).read(3)
    assert td.made[:2] == ["open tdx_guest", REPORT]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT])
def test_fresh_is_from_the_file_where_the_device_is_not_ours(td: FakeTd, number: int) -> None:
    """A container may be given the files alone."""
    td.fail["open tdx_guest"] = [number]
    assert registers(td).read_fresh(3) == td.rtmrs[3]
    assert td.times(REPORT) == 0
    assert td.times(f"read {FILE}")


def test_fresh_does_not_fall_back_once_the_device_is_open(td: FakeTd) -> None:
    """What the device says is final, for the file could be stale."""
    td.fail[REPORT] = [errno.EIO]
    with pytest.raises(BackendError, match="EIO"):
        registers(td).read_fresh(3)
    assert td.times(f"read {FILE}") == 0


@pytest.mark.parametrize("number", [4, -1, True, 1.0, "3", None])
def test_other_registers_do_not_exist(td: FakeTd, number: object) -> None:
    """Neither for reading nor, as RTMR0 and RTMR1, for extending; nothing is touched."""
    for call in (registers(td).read, registers(td).read_fresh):
        with pytest.raises(UsageError, match="no RTMR"):
            call(untyped(number))
    with pytest.raises(UsageError, match="RTMR2 and RTMR3"):
        registers(td).extend(untyped(number), DIGEST)
    assert td.made == []


@pytest.mark.parametrize("size", [0, 47, 49, 96])
def test_a_file_of_another_size_is_no_register(td: FakeTd, size: int) -> None:
    """Neither padded nor cut."""
    (td.paths.measurements / FILE).write_bytes(bytes(size))
    with pytest.raises(BackendError, match="a register has 48"):
        registers(td).read(3)


def test_neither_files_nor_device_says_both(old: FakeTd) -> None:
    """The text has both places that were tried."""
    old.paths.tdx_guest.unlink()
    with pytest.raises(BackendUnavailableError, match=r"6\.16.*tdx_guest"):
        registers(old).read(3)


# -- extending by the file ---------------------------------------------------------------------


@pytest.mark.parametrize("register", [2, 3])
def test_an_extend_is_one_write(td: FakeTd, register: int) -> None:
    """48 bytes at once, at the start of the right file; the ioctl is not tried."""
    td.extends_by = (FIRST, SECOND)
    expected = extended(td.rtmrs[register], DIGEST)
    others = td.rtmrs[:register] + td.rtmrs[register + 1 :]
    before = open_files()
    registers(td).extend(register, DIGEST)
    assert td.rtmrs[register] == expected
    assert td.rtmrs[:register] + td.rtmrs[register + 1 :] == others
    assert td.extends == td.times(f"write rtmr{register}:sha384") == 1
    assert td.times(CALL) == td.times(OTHER_CALL) == 0
    assert open_files() == before


@pytest.mark.parametrize("register", [0, 1])
def test_registers_of_the_firmware_are_left_alone(td: FakeTd, register: int) -> None:
    """The kernel would let root extend them."""
    with pytest.raises(UsageError, match=f"RTMR2 and RTMR3, not RTMR{register}"):
        registers(td).extend(register, DIGEST)
    assert td.made == []


@pytest.mark.parametrize("digest", [b"", bytes(47), bytes(49), bytearray(48), "0" * 48, None])
def test_a_digest_is_48_bytes(td: FakeTd, digest: object) -> None:
    """Before the kernel would say EINVAL."""
    with pytest.raises(UsageError, match="48 bytes"):
        registers(td).extend(3, untyped(digest))
    assert td.made == []


WRITE_ERRORS = [
    (errno.EINVAL, BackendError, "no register's file"),
    (errno.EIO, BackendError, "TDX module refused"),
    (errno.EACCES, BackendUnavailableError, "has mode 0644, owner uid"),
    (errno.EPERM, BackendUnavailableError, "has mode 0644, owner uid"),
    (errno.EROFS, BackendUnavailableError, "bind-mount .*measurements read-write"),
    (errno.ENOENT, BackendUnavailableError, "its folder is there"),
    (errno.ENOSPC, BackendError, "not known to say this"),
]


@pytest.mark.parametrize("where", [f"open {FILE}", WRITE])
@pytest.mark.parametrize(("number", "kind", "text"), WRITE_ERRORS)
def test_each_errno_of_a_file_has_its_text(
    td: FakeTd, where: str, number: int, kind: type[BackendError], text: str
) -> None:
    """Nothing was extended, nothing else is tried, and nothing stays open."""
    td.extends_by = (FIRST, SECOND)
    before = open_files()
    td.fail[where] = [number]
    with pytest.raises(BackendError, match=text) as caught:
        registers(td).extend(3, DIGEST)
    assert type(caught.value) is kind
    assert errno.errorcode[number] in str(caught.value)
    assert str(td.paths.measurements / FILE) in str(caught.value)
    assert td.extends == 0
    assert td.times(WRITE) <= 1
    assert td.times(CALL) == td.times(OTHER_CALL) == 0
    assert open_files() == before


@pytest.mark.parametrize("number", [errno.EINTR, errno.EBUSY])
@pytest.mark.parametrize("times", [1, len(BUSY_WAITS)])
def test_not_done_is_done_again_once_the_register_says_so(
    td: FakeTd, number: int, times: int
) -> None:
    """The register is read after each failure; in the end there is one extend."""
    td.fail[WRITE] = [number] * times
    expected = extended(td.rtmrs[3], DIGEST)
    registers(td).extend(3, DIGEST)
    assert td.rtmrs[3] == expected
    assert td.extends == 1
    assert td.times(REPORT) == 1 + times  # before, and after each failure
    assert td.slept == (list(BUSY_WAITS[:times]) if number == errno.EBUSY else [])


@pytest.mark.parametrize("number", [errno.EINTR, errno.EBUSY])
def test_not_done_is_not_tried_for_ever(td: FakeTd, number: int) -> None:
    """A bounded number of writes, within a second, and the register is as it was."""
    td.fail[WRITE] = [number] * 1000
    with pytest.raises(BackendBusyError, match="try again later"):
        registers(td).extend(3, DIGEST)
    assert td.extends == 0
    assert td.times(WRITE) == 1 + len(BUSY_WAITS)
    assert sum(td.slept) < 1


@pytest.mark.parametrize("number", [errno.EINTR, errno.EBUSY])
def test_done_in_spite_of_the_error_is_done(td: FakeTd, number: int) -> None:
    """The register is believed rather than the call: there is no second extend."""
    td.fail[WRITE] = [number + DONE] * 2
    expected = extended(td.rtmrs[3], DIGEST)
    registers(td).extend(3, DIGEST)
    assert td.rtmrs[3] == expected
    assert td.extends == td.times(WRITE) == 1


def test_done_in_spite_of_another_error_is_not_repeated(td: FakeTd) -> None:
    """The caller has to ask the register; one extend is all there was."""
    td.fail[WRITE] = [errno.EIO + DONE]
    with pytest.raises(BackendError, match="EIO"):
        registers(td).extend(3, DIGEST)
    assert td.extends == td.times(WRITE) == 1


def test_somebody_elses_extend_meanwhile_ends_it(td: FakeTd) -> None:
    """The register is neither as it was nor as it would be: nobody knows, and nothing is tried."""

    def write(fd: int, data: bytes) -> int:
        del fd, data
        td.made.append(WRITE)
        td.extend(3, bytes(48))
        raise OSError(errno.EBUSY, "")

    td.calls = td.calls._replace(write=write)
    before = td.rtmrs[3].hex()
    with pytest.raises(BackendError, match="somebody else") as caught:
        registers(td).extend(3, DIGEST)
    assert td.times(WRITE) == 1
    for value in (before, td.rtmrs[3].hex(), DIGEST.hex()):
        assert value in str(caught.value)


@pytest.mark.parametrize("taken", [0, 47])
def test_a_short_write_is_not_completed(td: FakeTd, taken: int) -> None:
    """A second write would be another extend."""

    def write(fd: int, data: bytes) -> int:
        del fd, data
        td.made.append(WRITE)
        return taken

    td.calls = td.calls._replace(write=write)
    with pytest.raises(BackendError, match=f"took {taken} of 48"):
        registers(td).extend(3, DIGEST)
    assert td.times(WRITE) == 1


def test_a_register_that_cannot_be_read_first_is_not_extended(td: FakeTd) -> None:
    """Without knowing what it was nobody could tell afterwards what happened."""
    td.fail[REPORT] = [errno.EIO]
    with pytest.raises(BackendError):
        registers(td).extend(3, DIGEST)
    assert td.extends == 0


# -- extending by the ioctl --------------------------------------------------------------------


@pytest.mark.parametrize("register", [2, 3])
def test_without_the_folder_the_first_ioctl_extends(old: FakeTd, register: int) -> None:
    """Data, then the register's number, in one call."""
    expected = extended(old.rtmrs[register], DIGEST)
    before = open_files()
    registers(old).extend(register, DIGEST)
    assert old.rtmrs[register] == expected
    assert old.extends == old.times(CALL) == 1
    assert old.times(OTHER_CALL) == 0
    assert open_files() == before


def test_the_other_ioctl_follows_enotty_alone(tmp_path: Path) -> None:
    """ENOTTY proves that the first did nothing."""
    td = FakeTd(tmp_path, files=False, extends_by=(SECOND,))
    expected = extended(td.rtmrs[3], DIGEST)
    registers(td).extend(3, DIGEST)
    assert td.rtmrs[3] == expected
    assert td.extends == td.times(CALL) == td.times(OTHER_CALL) == 1


def test_a_driver_of_linux_extends_nothing(tmp_path: Path) -> None:
    """Linux 6.2 to 6.15: both are unknown, and the text says which kernel can."""
    td = FakeTd(tmp_path, files=False)
    with pytest.raises(UnsupportedError, match=r"6\.16"):
        registers(td).extend(3, DIGEST)
    assert td.times(CALL) == td.times(OTHER_CALL) == 1
    assert td.extends == 0


@pytest.mark.parametrize("number", sorted(set(errno.errorcode) - {errno.ENOTTY}))
def test_no_other_errno_leads_to_the_other_ioctl(old: FakeTd, number: int) -> None:
    """Whatever the first says, and if it did its work or not: there are never two extends."""
    for due in (number, number + DONE):
        old.fail[CALL] = [due] * 100
        old.made.clear()
        before = old.extends
        said = ""
        try:
            registers(old).extend(3, DIGEST)
        except AttestKitError as error:
            said = str(error)
        done = due > DONE and number in (errno.EINTR, errno.EBUSY)
        assert done or errno.errorcode[number] in said
        assert old.extends - before == (due > DONE)
        assert old.times(OTHER_CALL) == 0


def test_the_driver_may_keep_a_register(old: FakeTd) -> None:
    """EPERM and EINVAL of the out-of-tree drivers have their own texts."""
    for number, text in ((errno.EPERM, "keeps this register"), (errno.EINVAL, "no such register")):
        old.fail[CALL] = [number]
        with pytest.raises(BackendError, match=text):
            registers(old).extend(3, DIGEST)


@pytest.mark.parametrize("number", [errno.EINTR, errno.EBUSY])
def test_a_busy_driver_is_asked_again_by_the_same_ioctl(old: FakeTd, number: int) -> None:
    """After a look at the register; and one extend in the end."""
    old.fail[CALL] = [number] * 2
    expected = extended(old.rtmrs[3], DIGEST)
    registers(old).extend(3, DIGEST)
    assert old.rtmrs[3] == expected
    assert old.extends == 1
    assert old.times(CALL) == 3
    assert old.times(OTHER_CALL) == 0


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO])
def test_only_a_missing_folder_leads_to_the_ioctl(td: FakeTd, number: int) -> None:
    """A folder that cannot be opened is there all the same."""
    td.extends_by = (FIRST, SECOND)
    td.fail["open measurements"] = [number]
    with pytest.raises(BackendError, match=errno.errorcode[number]):
        registers(td).extend(3, DIGEST)
    assert td.times(CALL) == td.times(OTHER_CALL) == td.extends == 0


def test_a_folder_without_the_file_does_not_lead_to_the_ioctl(td: FakeTd) -> None:
    """ENOENT of the file is not ENOENT of the folder."""
    td.extends_by = (FIRST, SECOND)
    (td.paths.measurements / FILE).unlink()
    with pytest.raises(BackendUnavailableError, match="its folder is there"):
        registers(td).extend(3, DIGEST)
    assert td.times(CALL) == td.times(OTHER_CALL) == td.extends == 0


def test_a_device_that_cannot_be_opened_extends_nothing(old: FakeTd) -> None:
    """The error is the device's own."""
    old.fail["open tdx_guest"] = [errno.EACCES] * 10
    with pytest.raises(BackendUnavailableError, match="we are uid"):
        registers(old).extend(3, DIGEST)


def test_a_result_that_is_neither_success_nor_error_is_refused(old: FakeTd) -> None:
    """Nobody knows what it did, so nothing is tried after it."""

    def ioctl(fd: int, command: int, buffer: bytearray) -> int:
        return old.ioctl(fd, command, buffer) or int(command == FIRST)

    old.calls = old.calls._replace(ioctl=ioctl)
    with pytest.raises(BackendError, match="returned 1"):
        registers(old).extend(3, DIGEST)
    assert old.extends == 1


# -- a folder that somebody chose --------------------------------------------------------------


def test_a_chosen_folder_that_is_missing_is_an_error(old: FakeTd) -> None:
    """It is named, and neither the report nor the ioctl takes its place."""
    chosen = registers(old, named=True)
    with pytest.raises(BackendUnavailableError, match="DCAP_TDX_RTMR_SYSFS_PATH"):
        chosen.read(3)
    with pytest.raises(BackendUnavailableError, match="DCAP_TDX_RTMR_SYSFS_PATH") as caught:
        chosen.extend(3, DIGEST)
    assert str(old.paths.measurements) in str(caught.value)
    assert old.extends == old.times(CALL) == 0


def test_a_chosen_folder_without_the_file_is_an_error(td: FakeTd) -> None:
    """The same for a file in it."""
    td.extends_by = (FIRST,)
    (td.paths.measurements / FILE).unlink()
    chosen = registers(td, named=True)
    with pytest.raises(BackendUnavailableError, match="ENOENT"):
        chosen.read(3)
    with pytest.raises(BackendUnavailableError, match="ENOENT"):
        chosen.extend(3, DIGEST)
    assert td.extends == 0


def test_a_chosen_folder_is_used(td: FakeTd) -> None:
    """It works as the usual one does."""
    expected = extended(td.rtmrs[3], DIGEST)
    registers(td, named=True).extend(3, DIGEST)
    assert registers(td, named=True).read(3) == expected


# -- the real calls ----------------------------------------------------------------------------


def test_the_real_write_is_at_the_start_of_the_file(td: FakeTd) -> None:
    """Plain files, real calls: 48 bytes replace what was there, nothing is appended."""
    os.truncate(td.paths.measurements / FILE, 48)
    device = TdxDevice(td.paths.measurements / "none")
    Rtmrs(td.paths, device).extend(3, DIGEST)
    assert (td.paths.measurements / FILE).read_bytes() == DIGEST
