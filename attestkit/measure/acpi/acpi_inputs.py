"""Inputs of the ACPI tables of dstack's machine (q35): its properties and the version of QEMU.

Versions of one release line make the same ACPI tables for the same machine.
"""

from typing import Final, NamedTuple

from attestkit._sanitize import shown
from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.errors import UsageError
from attestkit.measure.machine_shape import MachineShape


class QemuBuild(NamedTuple):
    """A QEMU program: its version, and a digest that changes with the file (see `read_build`).

    Builds of one version may differ by patches, and in the tables they make.
    """

    version: QemuVersion
    digest: bytes | None  # SHA-256 of its file and of what it prints; None if it is unreadable


_SHARE_MODES: Final = ("", "9p", "vvfat", "vhd")


class AcpiInputs(NamedTuple):
    """Inputs of the ACPI tables: equal ones give equal tables on one release line of QEMU.

    Of the memory only the part below 4 GiB has an influence, and of devices without a bridge only
    their number.

    Attributes:
        cpu_count: Number of vCPUs.
        low_memory: Bytes of RAM below 4 GiB.
        endpoints: Number of devices on bus 0, without those of the chipset and root ports.
        root_ports: Number of PCI Express root ports, with a device behind each.
        hotplug_off: Whether ACPI hotplug of PCI devices is off.
        pci_hole64_size: Bytes of the 64-bit PCI window, or 0 for QEMU's default.
        pic: Whether there is an interrupt controller 8259.
    """

    cpu_count: int
    low_memory: int
    endpoints: int
    root_ports: int
    hotplug_off: bool
    pci_hole64_size: int
    pic: bool


def host_version(machine: MachineShape) -> QemuVersion | None:
    """Return the version of the host's QEMU, parsed from `machine.qemu_version`; None if empty."""
    return QemuVersion.parse(machine.qemu_version) if machine.qemu_version else None


def acpi_inputs(machine: MachineShape) -> AcpiInputs:
    """Return the properties on which the ACPI tables of a dstack VM depend.

    Raises:
        UsageError: If `machine.host_share_mode` is unknown, because it may change the tables.
    """
    if machine.host_share_mode not in _SHARE_MODES:
        message = f"host_share_mode: must be 9p, vvfat or vhd, not {shown(machine.host_share_mode)}"
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
