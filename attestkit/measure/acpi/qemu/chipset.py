"""The chipset registers of q35 that OVMF programs before it reads the ACPI tables.

QEMU's tables depend on them, so a run without firmware has to write them first (edk2:
OvmfPkg/Library/PlatformInitLib; registers: Intel's datasheets of 3 Series chipsets and ICH9).
"""

from typing import Final, NamedTuple

from attestkit.errors import UsageError
from attestkit.measure.acpi.qemu.qtest import StoppedQemu

_ADDRESS, _DATA = 0xCF8, 0xCFC  # ports of PCI configuration space
_HOST_BRIDGE, _LPC_BRIDGE = 0, 31  # devices of bus 0
_PCIEXBAR, _PCIEXBAR_HIGH, _PMBASE, _ACPI_CNTL = 0x60, 0x64, 0x40, 0x44
_PM_BASE: Final = 0x600
_ACPI_ENABLE: Final = 0x80  # with the SCI on IRQ 9
_ENABLE: Final = 1

_ID, _COMMAND, _HEADER_TYPE = 0x00, 0x04, 0x0C
_NO_DEVICE: Final = (0, 0xFFFFFFFF)
_FIRST_BAR, _AFTER_BARS = 0x10, 0x24
_BAR_TYPE: Final = 0xF
_PREFETCHABLE_64: Final = 0xC  # memory, 64 bits, prefetchable
_DECODE_MEMORY: Final = 2

_MIN_PHYSICAL_BITS, _MAX_PHYSICAL_BITS = 36, 52


class ChipsetSetup(NamedTuple):
    """Registers that the firmware programs; the defaults are those of edk2 from 2023 on.

    Attributes:
        ecam_base: Address of PCI configuration space in memory, a multiple of 0x10000000 from
            0x80000000 to 0xF0000000; 0xB0000000 before 2023.
        physical_bits: Width of the address space that the firmware uses, 36 to 52: the CPU's, at
            most 46 with 4-level paging. The 64-bit PCI window is its top eighth.
    """

    ecam_base: int = 0xE0000000
    physical_bits: int = 46

    @property
    def window_start(self) -> int:
        """Start of the 64-bit PCI window, a guest physical address."""
        return (1 << self.physical_bits) - (1 << self.physical_bits - 3)


DEFAULT_SETUP: Final = ChipsetSetup()


def set_up_chipset(qemu: StoppedQemu, setup: ChipsetSetup = DEFAULT_SETUP) -> None:
    """Program the chipset as OVMF does; must precede the first read of a fw_cfg file.

    Raises:
        UsageError: If a value of `setup` is out of range.
        ConfigError: If QEMU has exited, because it refuses the options.
        BackendError: If QEMU does not answer in time, or not in the protocol.
    """
    check_setup(setup)
    _write(qemu, _HOST_BRIDGE, _PCIEXBAR_HIGH, 0)
    _write(qemu, _HOST_BRIDGE, _PCIEXBAR, setup.ecam_base | _ENABLE)
    _write(qemu, _LPC_BRIDGE, _PMBASE, _PM_BASE | _ENABLE)
    _write(qemu, _LPC_BRIDGE, _ACPI_CNTL, _ACPI_ENABLE)
    _place_window(qemu, setup.window_start)


def check_setup(setup: ChipsetSetup) -> None:
    """Raise UsageError if `ecam_base` or `physical_bits` is out of the range of `ChipsetSetup`."""
    if not 0x80000000 <= setup.ecam_base <= 0xF0000000 or setup.ecam_base % (1 << 28):
        message = f"ecam_base: must be 0x80000000 + n * 0x10000000, n 0 to 7: {setup.ecam_base:#x}"
        raise UsageError(message, reason="out_of_range")
    if not _MIN_PHYSICAL_BITS <= setup.physical_bits <= _MAX_PHYSICAL_BITS:
        message = f"physical_bits: must be 36 to 52, not {setup.physical_bits}"
        raise UsageError(message, reason="out_of_range")


def _place_window(qemu: StoppedQemu, start: int) -> None:
    """Set a 64-bit BAR of an endpoint to the address `start`.

    QEMU then reports this address as the start of the 64-bit PCI window.
    """
    for device in range(_LPC_BRIDGE):
        if _read(qemu, device, _ID) in _NO_DEVICE or _read(qemu, device, _HEADER_TYPE) >> 16 & 0x7F:
            continue  # empty, or a bridge
        for bar in range(_FIRST_BAR, _AFTER_BARS, 4):
            if _read(qemu, device, bar) & _BAR_TYPE == _PREFETCHABLE_64:
                _write(qemu, device, bar, start & 0xFFFFFFFF)
                _write(qemu, device, bar + 4, start >> 32)
                _write(qemu, device, _COMMAND, _DECODE_MEMORY)
                return


def _select(qemu: StoppedQemu, device: int, register: int) -> None:
    qemu.port_write(_ADDRESS, 1 << 31 | device << 11 | register)


def _write(qemu: StoppedQemu, device: int, register: int, value: int) -> None:
    _select(qemu, device, register)
    qemu.port_write(_DATA, value)


def _read(qemu: StoppedQemu, device: int, register: int) -> int:
    _select(qemu, device, register)
    return qemu.port_read(_DATA)
