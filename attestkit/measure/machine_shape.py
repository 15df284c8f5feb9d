"""The shape of a virtual machine: the settings of QEMU on which measurements depend."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Final

from attestkit._argument_checks import wrong_type
from attestkit._formats import strict_json
from attestkit._outcomes.reasons import FormatReason, UsageReason
from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.attestation.launch.td_hob import MemoryRange, memory_below_4g, memory_ranges
from attestkit.attestation.launch.tdx import is_two_pass
from attestkit.errors import FormatError, UsageError
from attestkit.measure.firmware.tdvf import PageOrder

OTHER_DEVICES: Final = 3
"""Devices that every machine has: data disk, vsock, shared files."""

_MAX_CPUS: Final = 4096
_MEMORY_STEP: Final = 8192  # QEMU rounds the size up to a multiple
_MIN_MEMORY: Final = 1 << 20
_MAX_MEMORY: Final = 1 << 45  # bytes; the 64-bit PCI window starts at 56 TiB
_MAX_HOLE: Final = 1 << 51
_SLOTS: Final = 30  # of PCI bus 0, without host bridge and LPC
_DEFAULT_VERSION: Final = QemuVersion(9, 1)  # as the reference verifier assumes

# Reasons of the constructor's errors, and those for a number of a vm_config.
_IN_CONFIG: Final[dict[str, FormatReason]] = {
    "not_applicable": "unsupported",
    "out_of_range": "wrong_value",
    "too_large": "too_large",
    "too_many": "too_many",
    "wrong_type": "wrong_type",
    "wrong_value": "wrong_value",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineShape:
    """The shape of a TD of dstack, on machine q35; the defaults are those of a vm_config.

    Attributes:
        cpu_count: Possible vCPUs, 1 to 4,096.
        memory_size: Bytes, a multiple of 8 KiB, 1 MiB to 32 TiB.
        qemu_version: Version of QEMU, such as 9.2.1; empty if unknown, which is treated as 9.1.
        pic: Whether there is an interrupt controller 8259; None for the default of the version.
        pci_hole64_size: Bytes of the 64-bit PCI window; 0 for QEMU's default.
        hotplug_off: Whether hotplug of PCI bridges by ACPI is off.
        num_gpus: Number of GPUs, each behind a root port of its own.
        num_nvswitches: Number of NVSwitches, each behind a root port of its own.
        num_nics: Number of network cards.
        num_verity_volumes: Number of read-only disks.
        host_share_mode: How files are shared with the host, such as `9p` or `vvfat`; one slot.
        root_disk: Whether the root file system is on a disk, not a CD-ROM.
        two_pass: Whether MRTD has the page order `two_pass`; None chooses by the QEMU version.
        hugepages: Whether memory is of huge pages; unsupported together with GPUs.
        swtpm: Whether the machine has a TPM; unsupported.

    Raises:
        UsageError: If a value is out of range or has the wrong type, or a combination is not
            supported.
    """

    cpu_count: int
    memory_size: int
    qemu_version: str = ""
    pic: bool | None = None
    pci_hole64_size: int = 0
    hotplug_off: bool = False
    num_gpus: int = 0
    num_nvswitches: int = 0
    num_nics: int = 1
    num_verity_volumes: int = 0
    host_share_mode: str = ""
    root_disk: bool = True
    two_pass: bool | None = None
    hugepages: bool = False
    swtpm: bool = False

    def __post_init__(self) -> None:
        """Check all values."""
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name))
        _check_range("cpu_count", self.cpu_count, 1, _MAX_CPUS)
        _check_range("memory_size", self.memory_size, _MIN_MEMORY, _MAX_MEMORY)
        _check_range("pci_hole64_size", self.pci_hole64_size, 0, _MAX_HOLE)
        for name in ("num_gpus", "num_nvswitches", "num_nics", "num_verity_volumes"):
            _check_range(name, getattr(self, name), 0, _SLOTS)
        if self.memory_size % _MEMORY_STEP:
            raise _error(
                "memory_size", f"must be a multiple of {_MEMORY_STEP} bytes", "wrong_value"
            )
        if self.slots > _SLOTS:
            problem = f"{self.slots} devices on PCI bus 0, at most {_SLOTS}"
            raise _error("num_gpus, num_nics, ...", problem, "too_many")
        if len(self.host_share_mode) > 32:
            problem = f"{len(self.host_share_mode)} characters, at most 32"
            raise _error("host_share_mode", problem, "too_large")
        try:
            version = self._version
        except FormatError as error:
            raise _error("qemu_version", error.message, "wrong_value") from error
        if version.major < 8:
            raise _error("qemu_version", "must be 8.0 or later for TDX", "not_applicable")
        if self.swtpm:
            raise _error("swtpm", "machines with a TPM are not supported", "not_applicable")
        if self.hugepages and self.num_gpus + self.num_nvswitches:
            raise _error("hugepages", "not supported together with GPUs", "not_applicable")

    @classmethod
    def from_vm_config(cls, config: Mapping[str, Any], *, root_disk: bool = True) -> "MachineShape":
        """Return the shape in a VM configuration, as the host states it; it is not verified.

        Args:
            config: `fields` of a `VmConfig`; unknown members are ignored.
            root_disk: Whether the root file system is on a disk; it depends on the image.

        Raises:
            FormatError: If a member is missing, out of range or has the wrong type, or the machine
                has an unsupported feature: huge pages with GPUs, NUMA nodes, a TPM.
        """
        if config.get("numa_nodes"):
            raise FormatError("vm_config: numa_nodes: not supported", reason="unsupported")
        # Null is equivalent to a missing member.
        found = {name: value for name in _IN_VM_CONFIG if (value := config.get(name)) is not None}
        for name in ("cpu_count", "memory_size"):
            strict_json.number_field(found, name, 64)
        order = config.get("qemu_single_pass_add_pages")  # true selects the order of two passes
        if order is not None and not isinstance(order, bool):
            name = "vm_config: qemu_single_pass_add_pages"
            raise strict_json.wrong_json_type(name, "true, false or null", order)
        try:
            return cls(**found, root_disk=root_disk, two_pass=order)
        except UsageError as error:
            message, reason = f"vm_config: {error}", _IN_CONFIG[error.reason]
            raise FormatError(message, reason=reason) from error

    @property
    def qemu_release(self) -> tuple[int, int]:
        """Release of QEMU, such as (9, 2), also of its development versions; 9.1 if unknown."""
        return self._version.release

    @property
    def _version(self) -> QemuVersion:
        return QemuVersion.parse(self.qemu_version) if self.qemu_version else _DEFAULT_VERSION

    @property
    def page_order(self) -> PageOrder:
        """Order of the pages in MRTD: by `two_pass`, or if that is None by the version of QEMU."""
        stated = {"qemu_single_pass_add_pages": self.two_pass}
        version = {"qemu_version": self.qemu_version or None}
        return "two_pass" if is_two_pass(stated | version) else "single_pass"

    @property
    def memory(self) -> tuple[MemoryRange, ...]:
        """Start and end (the address after it) of each range of RAM, guest physical."""
        return memory_ranges(self.memory_size)

    @property
    def memory_below_4g(self) -> int:
        """Bytes of RAM below the address 4 GiB."""
        return memory_below_4g(self.memory_size)

    @property
    def slots(self) -> int:
        """Number of devices on PCI bus 0, where each GPU and NVSwitch has a root port."""
        devices = self.root_disk + self.num_verity_volumes + self.num_nics + OTHER_DEVICES
        return devices + self.num_gpus + self.num_nvswitches


_TYPES: Final[dict[str, tuple[type | UnionType, str]]] = {
    **dict.fromkeys(("pic", "two_pass"), (bool | None, "bool or None")),
    **dict.fromkeys(("hotplug_off", "root_disk", "hugepages", "swtpm"), (bool, "bool")),
    **dict.fromkeys(("qemu_version", "host_share_mode"), (str, "str")),
}
_IN_VM_CONFIG: Final = tuple(
    field.name for field in fields(MachineShape) if field.name not in {"root_disk", "two_pass"}
)


def _check_type(name: str, value: object) -> None:
    kind, expected = _TYPES.get(name, (int, "int"))
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise wrong_type(name, expected, value)


def _check_range(name: str, value: int, lowest: int, highest: int) -> None:
    if not lowest <= value <= highest:
        raise _error(name, f"must be {lowest} to {highest}, not {value}", "out_of_range")


def _error(name: str, problem: str, reason: UsageReason) -> UsageError:
    return UsageError(f"{name}: {problem}", reason=reason)
