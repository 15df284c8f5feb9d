"""Registers through the real driver: its files on Linux 6.16 and later, TD reports before that."""

import errno
import hashlib
import os
from io import FileIO

import pytest

from attestkit.backends.configfs_tsm import ConfigfsTdx
from attestkit.backends.linux.paths import KernelPaths
from attestkit.errors import BackendBusyError, BackendError, UnsupportedError, UsageError
from attestkit.quote import Quote
from tests.rigs.kernel.guest.machine import HAS_REGISTERS, MadeUpTd, errno_of, has_registers

DIGEST = hashlib.sha384(b"an event").digest()
FILES = KernelPaths().measurements


def _extended(value: bytes) -> bytes:
    return hashlib.sha384(value + DIGEST).digest()


def test_registers_are_the_hardwares(td: MadeUpTd) -> None:
    """What a backend reads is what the hardware has, and what is in the quote."""
    backend = ConfigfsTdx()
    registers = tuple(map(backend.read_rtmr, range(4)))
    assert registers == td.registers() == td.boot_registers
    assert Quote.parse(backend.get_quote(bytes(64))).rtmrs == registers


@pytest.mark.skipif(HAS_REGISTERS, reason="this kernel has register files")
def test_a_kernel_without_files_extends_nothing(td: MadeUpTd) -> None:
    """It is said so; the ioctls that are tried were all unknown to the driver."""
    assert not FILES.exists()
    with pytest.raises(UnsupportedError, match="update the kernel"):
        ConfigfsTdx().extend_rtmr(3, DIGEST)
    assert td.registers() == td.boot_registers


@has_registers
@pytest.mark.parametrize("register", [2, 3])
def test_an_extend_is_one_extend(td: MadeUpTd, register: int) -> None:
    """File, TD report and quote show SHA-384 of the old value and the digest; once."""
    backend = ConfigfsTdx()
    wanted = list(td.boot_registers)
    wanted[register] = _extended(wanted[register])
    backend.extend_rtmr(register, DIGEST)
    assert tuple(map(backend.read_rtmr, range(4))) == tuple(wanted)
    assert td.registers() == tuple(wanted)
    assert Quote.parse(backend.get_quote(bytes(64))).rtmrs == tuple(wanted)
    assert td.get("extend_calls") == 1


@has_registers
@pytest.mark.parametrize("register", [0, 1])
def test_the_firmwares_registers_are_not_for_programs(td: MadeUpTd, register: int) -> None:
    """The kernel would let root extend them; we do not."""
    with pytest.raises(UsageError):
        ConfigfsTdx().extend_rtmr(register, DIGEST)
    assert td.get("extend_calls") == 0


@has_registers
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINTR])
def test_not_done_is_done_again(td: MadeUpTd, number: int) -> None:
    """What the driver refused for the moment is repeated, and the register extended once."""
    td.set(extend_err=-number, fault_times=2)
    ConfigfsTdx().extend_rtmr(3, DIGEST)
    assert td.registers()[3] == _extended(td.boot_registers[3])
    assert td.get("extend_calls") == 3


@has_registers
@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EBUSY, BackendBusyError),
        (errno.EINTR, BackendBusyError),
        (errno.EINVAL, BackendError),
        (errno.EIO, BackendError),
    ],
)
def test_a_refused_extend_changes_nothing(
    td: MadeUpTd, number: int, kind: type[BackendError]
) -> None:
    """Each errno of the driver is the documented error, and the register is as it was."""
    td.set(extend_err=-number)
    with pytest.raises(BackendError, match=errno.errorcode[number]) as caught:
        ConfigfsTdx().extend_rtmr(3, DIGEST)
    assert type(caught.value) is kind
    assert td.registers() == td.boot_registers


@has_registers
@pytest.mark.parametrize("size", [0, 1, 47])
def test_the_kernel_takes_no_shorter_write(td: MadeUpTd, size: int) -> None:
    """It is EINVAL, or for no bytes nothing; no register changes."""
    fd = os.open(FILES / "rtmr3:sha384", os.O_WRONLY)
    try:
        assert errno_of(lambda: os.write(fd, bytes(size))) == (errno.EINVAL if size else 0)
    finally:
        os.close(fd)
    assert td.registers() == td.boot_registers
    assert td.get("extend_calls") == 0


@has_registers
@pytest.mark.parametrize("size", [49, 96])
def test_the_kernel_cuts_a_longer_write(td: MadeUpTd, size: int) -> None:
    """It takes the first 48 bytes, says so, and the register is extended by them."""
    fd = os.open(FILES / "rtmr3:sha384", os.O_WRONLY)
    try:
        assert os.write(fd, DIGEST.ljust(size, b"!")) == 48
    finally:
        os.close(fd)
    assert td.registers()[3] == _extended(td.boot_registers[3])


@has_registers
def test_the_files_are_those_of_the_abi(td: MadeUpTd) -> None:
    """Names, sizes and modes."""
    del td
    found = {file.name: file.stat() for file in FILES.iterdir()}
    rtmrs = [f"rtmr{number}:sha384" for number in range(4)]
    assert sorted(found) == ["mrconfigid", "mrowner", "mrownerconfig", "mrtd:sha384", *rtmrs]
    for name, status in found.items():
        assert status.st_size == 48
        assert status.st_mode & 0o777 == (0o644 if name in rtmrs else 0o444)


@has_registers
def test_a_change_behind_the_files_shows_late(td: MadeUpTd) -> None:
    """The driver's file has the old value until the next extend, so the journal does not use it."""
    backend = ConfigfsTdx()
    old = backend.read_rtmr(3)
    with FileIO("/dev/tdx_shim_report", "r+") as report:
        report.seek(720 + 3 * 48)
        report.write(b"\xee" * 48)
    assert backend.read_rtmr(3) == old
    assert backend._rtmrs.read_fresh(3) == b"\xee" * 48
    del td
