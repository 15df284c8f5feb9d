"""TD reports by the real driver's ioctl, and the errno that it gives for each thing that fails."""

import ctypes
import errno
import os
from functools import partial

import pytest

from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import ioctl, size_of
from attestkit.backends.tdx.device import GET_REPORT0, TdxDevice
from attestkit.backends.tdx.quote_ioctl import GENERATIONS
from attestkit.backends.tdx_ioctl import TdxIoctl
from attestkit.errors import BackendBusyError, BackendError, BackendUnavailableError
from attestkit.td_report import TdReport
from tests.rigs.kernel.guest.machine import MadeUpTd, errno_of, remove

ASKED = bytes(range(64))
DEVICE = KernelPaths().tdx_guest

# Every command of an out-of-tree driver that was ever at this node, or at its older names.
FOREIGN_COMMANDS = (
    *(0xC0085401, 0x80085402, 0x80085404, 0x80085405, 0x80085403),
    *(0x81085402, 0x80315403, 0x80105404, 0xC1085402, 0x40315403, 0xC0105404),
    *(0xC0105402, 0x80105402),
)


@pytest.fixture
def device() -> TdxDevice:
    """Return the device at the place where Linux has it."""
    return TdxDevice(DEVICE)


def test_a_report_is_over_what_was_asked(lonely_td: MadeUpTd, device: TdxDevice) -> None:
    """The 64 bytes that went in are in the report, and so are the hardware's registers."""
    report = TdReport.parse(device.get_report(ASKED))
    assert report.report_data == ASKED
    assert report.rtmrs == lonely_td.registers() == lonely_td.boot_registers
    assert lonely_td.get("report_calls")


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EINVAL, BackendError),
        (errno.EBUSY, BackendBusyError),
        (errno.EINTR, BackendBusyError),
        (errno.EIO, BackendError),
        (errno.ENOMEM, BackendError),
    ],
)
def test_a_failure_of_the_module_is_an_error_of_ours(
    lonely_td: MadeUpTd, device: TdxDevice, number: int, kind: type[BackendError]
) -> None:
    """Each errno of the driver becomes the documented error, which names it."""
    lonely_td.set(report_err=-number)
    with pytest.raises(BackendError, match=errno.errorcode[number]) as caught:
        device.get_report(ASKED)
    assert type(caught.value) is kind
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number
    lonely_td.set(report_err=0)
    assert TdReport.parse(device.get_report(ASKED)).report_data == ASKED


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINTR])
def test_what_passes_is_waited_for(lonely_td: MadeUpTd, device: TdxDevice, number: int) -> None:
    """A module that is busy, or a signal, three times over costs three more calls and no error."""
    before = lonely_td.get("report_calls")
    lonely_td.set(report_err=-number, fault_times=3)
    assert TdReport.parse(device.get_report(ASKED)).report_data == ASKED
    assert lonely_td.get("report_calls") == before + 4


def test_no_other_command_is_known(lonely_td: MadeUpTd) -> None:
    """The numbers of all other drivers give ENOTTY: they are compared as a whole."""
    fd = os.open(DEVICE, os.O_RDWR)
    try:
        for command in FOREIGN_COMMANDS:
            argument = bytearray(size_of(command))
            assert errno_of(partial(ioctl, fd, command, argument)) == errno.ENOTTY, hex(command)
    finally:
        os.close(fd)
    assert set(FOREIGN_COMMANDS) > {generation.number for generation in GENERATIONS.values()}
    assert lonely_td.get("quote_calls") == 0


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_quote_of_another_driver_is_not_to_be_had(lonely_td: MadeUpTd, generation: str) -> None:
    """Whoever names another driver's generation is told that this is not it."""
    del lonely_td
    with pytest.raises(BackendUnavailableError, match="ENOTTY"):
        TdxIoctl(generation=generation).get_quote(ASKED)


def test_a_wrong_address_is_the_callers_mistake(lonely_td: MadeUpTd) -> None:
    """The driver says EFAULT for an argument that is not there, and asks nobody."""
    before = lonely_td.get("report_calls")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(DEVICE, os.O_RDWR)
    try:
        assert libc.ioctl(fd, ctypes.c_ulong(GET_REPORT0), ctypes.c_void_p(1 << 12)) == -1
    finally:
        os.close(fd)
    assert ctypes.get_errno() == errno.EFAULT
    assert lonely_td.get("report_calls") == before


def test_without_a_driver_both_backends_name_it(lonely_td: MadeUpTd, device: TdxDevice) -> None:
    """A guest whose driver is not loaded is told what to load."""
    remove("tdx_guest")
    with pytest.raises(BackendUnavailableError, match="modprobe tdx-guest"):
        device.get_report(ASKED)
    with pytest.raises(BackendUnavailableError, match="ENXIO") as caught:
        ConfigfsTsm.probe()
    assert "modprobe tdx-guest" in str(caught.value)
    with pytest.raises(BackendUnavailableError, match="modprobe tdx-guest"):
        TdxIoctl.probe()
    del lonely_td


def test_a_driver_that_goes_is_noticed(td: MadeUpTd) -> None:
    """A backend that is open when its driver is unloaded says so at the next request."""
    backend = ConfigfsTsm()
    assert backend.get_quote(ASKED)
    remove("tdx_guest")
    with pytest.raises(BackendUnavailableError, match="ENXIO"):
        backend.get_quote(ASKED)
    backend.close()
    del td
