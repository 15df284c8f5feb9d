"""Properties of dstack's machine on which its ACPI tables depend (QEMU, machine type q35)."""

from typing import Final, NamedTuple, Protocol

from attestkit._sanitize import shown
from attestkit.attestation.launch.td_hob import memory_below_4g
from attestkit.errors import FormatError, UsageError
from attestkit.measure.acpi.qemu_version import QemuVersion

MEMORY_STEP: Final = 8192
"""QEMU rounds the memory size up to a multiple of this."""

MAX_VCPUS: Final = 4096
MAX_MEMORY: Final = 1 << 45
"""Bytes; the 64-bit PCI window starts at 56 TiB."""

_MIN_MEMORY: Final = 1 << 20  # the reader of fw_cfg uses the first 640 KiB
_MAX_HOLE: Final = 1 << 51
_MAX_SLOTS: Final = 30  # of bus 0, without host bridge and LPC
_SHARE_MODES: Final = ("", "9p", "vvfat", "vhd")


class DstackMachine(Protocol):
    """Shape of a dstack VM, such as a `MachineShape`; names and units are those of vm_config."""

    @property
    def cpu_count(self) -> int:
        """Number of vCPUs."""
        ...

    @property
    def memory_size(self) -> int:
        """Bytes of memory."""
        ...

    @property
    def qemu_version(self) -> str:
        """Version of the host's QEMU; empty if unknown."""
        ...

    @property
    def pic(self) -> bool | None:
        """Whether there is a PIC; None stands for QEMU's default, which is before 9.0."""
        ...

    @property
    def pci_hole64_size(self) -> int:
        """Bytes of the 64-bit PCI window, or 0 for QEMU's default."""
        ...

    @property
    def hotplug_off(self) -> bool:
        """Whether ACPI hotplug of PCI devices is off."""
        ...

    @property
    def num_gpus(self) -> int:
        """Number of GPUs."""
        ...

    @property
    def num_nvswitches(self) -> int:
        """Number of NVSwitches."""
        ...

    @property
    def num_nics(self) -> int:
        """Number of network interfaces."""
        ...

    @property
    def num_verity_volumes(self) -> int:
        """Number of verity volumes."""
        ...

    @property
    def root_disk(self) -> bool:
        """Whether the root file system is on a disk, not on a CD-ROM."""
        ...

    @property
    def host_share_mode(self) -> str:
        """Way in which the host shares files: 9p or a disk."""
        ...

    @property
    def hugepages(self) -> bool:
        """Whether the memory has huge pages."""
        ...

    @property
    def swtpm(self) -> bool:
        """Whether there is a TPM."""
        ...


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


def host_version(machine: DstackMachine) -> QemuVersion | None:
    """Return the version of the host's QEMU, or None if it is unknown.

    Raises:
        UsageError: If it is not a version number.
    """
    if not machine.qemu_version:
        return None
    try:
        return QemuVersion.parse(machine.qemu_version)
    except FormatError as error:
        raise UsageError(error.message, reason="wrong_value") from error


def acpi_inputs(machine: DstackMachine) -> AcpiInputs:
    """Return what the tables of a dstack VM depend on.

    Raises:
        UsageError: If a number is out of range, or the machine has a TPM, huge pages with GPUs, or
            an unknown way of sharing files: how these change the tables is not known.
    """
    _check_range("cpu_count", machine.cpu_count, 1, MAX_VCPUS)
    _check_range("memory_size", machine.memory_size, _MIN_MEMORY, MAX_MEMORY)
    if machine.memory_size % MEMORY_STEP:
        message = f"memory_size: {machine.memory_size}, must be a multiple of {MEMORY_STEP}"
        raise UsageError(message, reason="wrong_value")
    _check_range("pci_hole64_size", machine.pci_hole64_size, 0, _MAX_HOLE)
    for name in ("num_gpus", "num_nvswitches", "num_nics", "num_verity_volumes"):
        _check_range(name, getattr(machine, name), 0, _MAX_SLOTS)
    _check_devices(machine)
    # In any order: root disk, data disk, verity volumes, network, vsock, shared files.
    endpoints = machine.num_verity_volumes + machine.num_nics + 3 + bool(machine.root_disk)
    ports = machine.num_gpus + machine.num_nvswitches
    if endpoints + ports > _MAX_SLOTS:
        message = f"{endpoints} devices and {ports} root ports; PCI bus 0 has {_MAX_SLOTS} slots"
        raise UsageError(message, reason="too_many")
    return AcpiInputs(
        cpu_count=machine.cpu_count,
        low_memory=memory_below_4g(machine.memory_size),
        endpoints=endpoints,
        root_ports=ports,
        hotplug_off=bool(machine.hotplug_off),
        pci_hole64_size=machine.pci_hole64_size,
        pic=_has_pic(machine),
    )


def _check_range(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        message = f"{name}: must be an integer, not {type(value).__name__}"
        raise UsageError(message, reason="wrong_type")
    if not least <= value <= most:
        message = f"{name}: {shown(value)}, must be {least} to {most}"
        raise UsageError(message, reason="out_of_range")


def _check_devices(machine: DstackMachine) -> None:
    if machine.swtpm:
        raise UsageError("swtpm: ACPI tables with a TPM are unknown", reason="not_applicable")
    if machine.hugepages and machine.num_gpus + machine.num_nvswitches:
        message = "hugepages: ACPI tables with huge pages and GPUs are unknown"
        raise UsageError(message, reason="not_applicable")
    if machine.host_share_mode not in _SHARE_MODES:
        message = f"host_share_mode: {shown(machine.host_share_mode)} is unknown"
        raise UsageError(message, reason="wrong_value")


def _has_pic(machine: DstackMachine) -> bool:
    if machine.pic is not None:
        return bool(machine.pic)
    version = host_version(machine)
    return version is not None and version.release < (9, 0)
