"""Registers on the real driver: files since Linux 6.16, TD reports before."""

import errno
import hashlib
from io import FileIO

import pytest

from attestkit.backends.configfs_tsm import ConfigfsTdx
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.errors import BackendBusyError, BackendError, UnsupportedError, UsageError
from attestkit.quote import Quote
from tests.raising import raises
from tests.rigs.kernel.guest.machine import HAS_REGISTERS, SimulatedTd, has_registers

DIGEST = hashlib.sha384(b"an event").digest()
FILES = KernelPaths().measurements


def _extended(value: bytes) -> bytes:
    return hashlib.sha384(value + DIGEST).digest()


def test_registers_equal_hardware_and_quote(td: SimulatedTd) -> None:
    """The backend reads the hardware's values."""
    backend = ConfigfsTdx()
    registers = tuple(map(backend.read_rtmr, range(4)))
    assert registers == td.registers() == td.boot_registers
    assert Quote.parse(backend.get_quote(bytes(64))).rtmrs == registers


@pytest.mark.skipif(HAS_REGISTERS, reason="this kernel has register files")
def test_extend_without_register_files_is_unsupported(td: SimulatedTd) -> None:
    """The driver supports none of the ioctls."""
    assert not FILES.exists()
    with raises(UnsupportedError, "no_registers"):
        ConfigfsTdx().extend_rtmr(3, DIGEST)
    assert td.registers() == td.boot_registers


@has_registers
@pytest.mark.parametrize("register", [2, 3])
def test_extend_changes_the_register_once(td: SimulatedTd, register: int) -> None:
    """File, TD report and quote have SHA-384 of the old value and the digest."""
    backend = ConfigfsTdx()
    expected = list(td.boot_registers)
    expected[register] = _extended(expected[register])
    backend.extend_rtmr(register, DIGEST)
    assert tuple(map(backend.read_rtmr, range(4))) == tuple(expected)
    assert td.registers() == tuple(expected)
    assert Quote.parse(backend.get_quote(bytes(64))).rtmrs == tuple(expected)
    assert td.get("extend_calls") == 1


@has_registers
@pytest.mark.parametrize("register", [0, 1])
def test_extend_firmware_register_is_rejected_on_kernel(td: SimulatedTd, register: int) -> None:
    """The kernel would allow root to extend it."""
    with pytest.raises(UsageError):
        ConfigfsTdx().extend_rtmr(register, DIGEST)
    assert td.get("extend_calls") == 0


@has_registers
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINTR])
def test_extend_transient_error_is_retried(td: SimulatedTd, number: int) -> None:
    """The register is extended once."""
    td.set(extend_err=-number, fault_times=2)
    ConfigfsTdx().extend_rtmr(3, DIGEST)
    assert td.registers()[3] == _extended(td.boot_registers[3])
    assert td.get("extend_calls") == 3


@has_registers
@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (errno.EBUSY, BackendBusyError, "device"),
        (errno.EINTR, BackendBusyError, "interrupted"),
        (errno.EINVAL, BackendError, "io_error"),
        (errno.EIO, BackendError, "io_error"),
    ],
)
def test_extend_error_leaves_the_register(
    td: SimulatedTd, number: int, kind: type[BackendError], reason: str
) -> None:
    """Each errno of the driver gives the documented error."""
    td.set(extend_err=-number)
    with raises(kind, reason) as caught:
        ConfigfsTdx().extend_rtmr(3, DIGEST)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number
    assert td.registers() == td.boot_registers


@has_registers
def test_kernel_register_file_may_be_stale(td: SimulatedTd) -> None:
    """The file has the old value until the next extend, so the journal does not use it."""
    backend = ConfigfsTdx()
    old = backend.read_rtmr(3)
    with FileIO("/dev/tdx_shim_report", "r+") as report:
        report.seek(720 + 3 * 48)
        report.write(b"\xee" * 48)
    assert backend.read_rtmr(3) == old
    assert backend._rtmrs.read_fresh(3) == b"\xee" * 48
    del td
