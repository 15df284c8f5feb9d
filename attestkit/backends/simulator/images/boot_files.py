"""Source of a simulated guest's boot: a dstack image, or files."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from attestkit.measure.machine_shape import MachineShape

if TYPE_CHECKING:
    from attestkit.measure.acpi import FoundTables
    from attestkit.measure.rtmr0.boot_events import AcpiBlobs

DEFAULT_SHAPE: Final = MachineShape(cpu_count=2, memory_size=2 << 30, qemu_version="10.0.13")
"""A machine whose ACPI tables are in the package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFiles:
    """Files that QEMU boots in a simulated guest, and the machine.

    Attributes:
        firmware: Image of OVMF, with its variables.
        kernel: Linux kernel.
        initrd: Initrd, if any.
        cmdline: Command line of the kernel.
        shape: The machine of a TD.
        acpi: Its ACPI tables. None: those of the package; for machines of which it has none, the
            digests in the log are those of literal strings.
        smbios: The SMBIOS table of QEMU. None: an empty one.
    """

    firmware: bytes
    kernel: bytes
    initrd: bytes | None = None
    cmdline: str = ""
    shape: MachineShape = DEFAULT_SHAPE
    acpi: "AcpiBlobs | FoundTables | None" = None
    smbios: bytes | None = None


BootSource: TypeAlias = str | os.PathLike[str] | BootFiles
"""A dstack image (folder or archive), or files."""
