"""TD reports by the real driver's ioctl, and its errnos."""

import ctypes
import errno
import os
from functools import partial

import pytest

from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.linux.syscalls import ioctl, size_of
from attestkit.backends.tdx.device import GET_REPORT0, TdxDevice
from attestkit.backends.tdx_ioctl import GENERATIONS, TdxIoctl
from attestkit.errors import BackendBusyError, BackendError, BackendUnavailableError
from attestkit.td_report import TdReport
from tests.raising import raises
from tests.rigs.kernel.guest.machine import SimulatedTd, errno_of, unload_module

REPORT_DATA = bytes(range(64))
DEVICE = KernelPaths().tdx_guest

# All commands of out-of-tree drivers on this node, or on its older names.
FOREIGN_COMMANDS = (
    *(0xC0085401, 0x80085402, 0x80085404, 0x80085405, 0x80085403),
    *(0x81085402, 0x80315403, 0x80105404, 0xC1085402, 0x40315403, 0xC0105404),
    *(0xC0105402, 0x80105402),
)


@pytest.fixture
def device() -> TdxDevice:
    """Return the device at its default path."""
    return TdxDevice(DEVICE)


def test_kernel_report_has_report_data_and_registers(
    td_without_qgs: SimulatedTd, device: TdxDevice
) -> None:
    """The registers are the hardware's."""
    report = TdReport.parse(device.get_report(REPORT_DATA))
    assert report.report_data == REPORT_DATA
    assert report.rtmrs == td_without_qgs.registers() == td_without_qgs.boot_registers
    assert td_without_qgs.get("report_calls")


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EINVAL, (BackendError, "io_error")),
        (errno.EBUSY, (BackendBusyError, "device")),
        (errno.EINTR, (BackendBusyError, "interrupted")),
        (errno.EIO, (BackendError, "io_error")),
        (errno.ENOMEM, (BackendError, "io_error")),
    ],
)
def test_kernel_report_errno_gives_documented_error(
    td_without_qgs: SimulatedTd,
    device: TdxDevice,
    number: int,
    expected: tuple[type[BackendError], str],
) -> None:
    """The errno is the error's cause."""
    td_without_qgs.set(report_err=-number)
    with raises(*expected, path=str(DEVICE)) as caught:
        device.get_report(REPORT_DATA)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == number
    td_without_qgs.set(report_err=0)
    assert TdReport.parse(device.get_report(REPORT_DATA)).report_data == REPORT_DATA


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINTR])
def test_kernel_report_transient_error_is_retried(
    td_without_qgs: SimulatedTd, device: TdxDevice, number: int
) -> None:
    """Three failures take three more calls."""
    before = td_without_qgs.get("report_calls")
    td_without_qgs.set(report_err=-number, fault_times=3)
    assert TdReport.parse(device.get_report(REPORT_DATA)).report_data == REPORT_DATA
    assert td_without_qgs.get("report_calls") == before + 4


def test_kernel_rejects_other_commands(td_without_qgs: SimulatedTd) -> None:
    """The numbers of all other drivers give ENOTTY."""
    fd = os.open(DEVICE, os.O_RDWR)
    try:
        for command in FOREIGN_COMMANDS:
            argument = bytearray(size_of(command))
            assert errno_of(partial(ioctl, fd, command, argument)) == errno.ENOTTY, hex(command)
    finally:
        os.close(fd)
    assert set(FOREIGN_COMMANDS) > {generation.number for generation in GENERATIONS.values()}
    assert td_without_qgs.get("quote_calls") == 0


@pytest.mark.parametrize("generation", GENERATIONS)
def test_kernel_rejects_other_generations(td_without_qgs: SimulatedTd, generation: str) -> None:
    """The error is "unsupported_kernel"."""
    del td_without_qgs
    with raises(BackendUnavailableError, "unsupported_kernel", path=str(DEVICE)):
        TdxIoctl(generation=generation).get_quote(REPORT_DATA)


def test_kernel_rejects_invalid_address(td_without_qgs: SimulatedTd) -> None:
    """The driver returns EFAULT without a TDCALL."""
    before = td_without_qgs.get("report_calls")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(DEVICE, os.O_RDWR)
    try:
        assert libc.ioctl(fd, ctypes.c_ulong(GET_REPORT0), ctypes.c_void_p(1 << 12)) == -1
    finally:
        os.close(fd)
    assert ctypes.get_errno() == errno.EFAULT
    assert td_without_qgs.get("report_calls") == before


def test_missing_driver_is_named_by_both_backends(
    td_without_qgs: SimulatedTd, device: TdxDevice
) -> None:
    """The remedy is to load the driver."""
    unload_module("tdx_guest")
    for use in (lambda: device.get_report(REPORT_DATA), ConfigfsTsm.probe, TdxIoctl.probe):
        with raises(BackendUnavailableError, "missing", part="modprobe tdx-guest"):
            use()
    del td_without_qgs


def test_unloaded_driver_is_unavailable(td: SimulatedTd) -> None:
    """An open backend fails at the next request."""
    backend = ConfigfsTsm()
    assert backend.get_quote(REPORT_DATA)
    unload_module("tdx_guest")
    with raises(BackendUnavailableError, "missing") as caught:
        backend.get_quote(REPORT_DATA)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENXIO
    backend.close()
    del td
