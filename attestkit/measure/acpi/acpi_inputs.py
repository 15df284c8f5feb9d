"""Properties of dstack's machine on which its ACPI tables depend (QEMU, machine type q35)."""

from typing import Final, NamedTuple

from attestkit._sanitize import shown
from attestkit.errors import UsageError
from attestkit.measure.acpi.qemu_version import QemuVersion
from attestkit.measure.machine_shape import MachineShape

_SHARE_MODES: Final = ("", "9p", "vvfat", "vhd")


class AcpiInputs(NamedTuple):
    """Inputs of the tables: machines with equal inputs have equal tables on a QEMU line.

    The memory size matters only as far as RAM is below 4 GiB, and devices without a bridge only by
    their number.

    Attributes:
        cpu_count: Number of vCPUs.
        low_memory: Bytes of RAM below 4 GiB.
        endpoints: Number of devices on bus 0, without those of the chipset and root ports.
        root_ports: Number of PCI Express root ports, with a device behind each.
        hotplug_off: Whether ACPI hotplug of PCI devices is off.
        pci_hole64_size: Bytes of the 64-bit PCI window, or 0 for QEMU's default.
        pic: Whether there is a PIC.
    """

    cpu_count: int
    low_memory: int
    endpoints: int
    root_ports: int
    hotplug_off: bool
    pci_hole64_size: int
    pic: bool


def host_version(machine: MachineShape) -> QemuVersion | None:
    """Return the version of the host's QEMU, or None if it is unknown."""
    return QemuVersion.parse(machine.qemu_version) if machine.qemu_version else None


def acpi_inputs(machine: MachineShape) -> AcpiInputs:
    """Return what the tables of a dstack VM depend on.

    Raises:
        UsageError: If the way of sharing files is unknown, because it may change the tables.
    """
    if machine.host_share_mode not in _SHARE_MODES:
        message = f"host_share_mode: {shown(machine.host_share_mode)} is unknown"
        raise UsageError(message, reason="wrong_value")
    ports = machine.num_gpus + machine.num_nvswitches
    return AcpiInputs(
        cpu_count=machine.cpu_count,
        low_memory=machine.memory_below_4g,
        endpoints=machine.slots - ports,
        root_ports=ports,
        hotplug_off=machine.hotplug_off,
        pci_hole64_size=machine.pci_hole64_size,
        pic=_has_pic(machine),
    )


def _has_pic(machine: MachineShape) -> bool:
    if machine.pic is not None:
        return machine.pic
    version = host_version(machine)
    return version is not None and version.release < (9, 0)
