"""Inputs of a TD's expected measurements: machine, boot files and ACPI tables."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypeAlias, cast

from attestkit._argument_checks import require_bytes
from attestkit._crypto.hashes import sha256
from attestkit._sanitize import near, shown
from attestkit.attestation.launch.td_hob import MemoryRange
from attestkit.errors import UsageError
from attestkit.measure.acpi.acpi_tables import AcpiTables, check_tables
from attestkit.measure.acpi.table_sources import FoundTables
from attestkit.measure.firmware.mrtd import PageOrder
from attestkit.measure.kernel.disk_boot import BootImage
from attestkit.measure.kernel.gpt import GptTable
from attestkit.measure.kernel.linux_kernel import QemuRelease
from attestkit.measure.machine_shape import MachineShape
from attestkit.measure.rtmr0.boot_events import AcpiBlobs
from attestkit.measure.rtmr0.fw_cfg_items import FwCfgItems

GivenTables: TypeAlias = AcpiBlobs | FoundTables


class TdxMachine(NamedTuple):
    """Choices of the VMM: memory, items and tables that it shows the firmware."""

    memory: tuple[MemoryRange, ...]
    memory_size: int  # bytes
    qemu: QemuRelease
    page_order: PageOrder
    page_order_known: bool = False  # stated by the VM configuration
    acpi: FoundTables | None = None
    smbios: bytes | None = None  # of QEMU, published, or measured
    fw_cfg: FwCfgItems | None = None  # None for those of the kind of boot
    qemu_version: str = ""  # empty if unknown
    cpu_count: int | None = None
    boot_order_known: bool = True  # whether that of `fw_cfg` is the machine's

    @classmethod
    def of_shape(
        cls,
        shape: MachineShape,
        *,
        acpi: FoundTables | None = None,
        smbios: bytes | None = None,
        fw_cfg: FwCfgItems | None = None,
    ) -> "TdxMachine":
        """Return the machine of a shape."""
        return cls(
            memory=shape.memory,
            memory_size=shape.memory_size,
            qemu=shape.qemu_release,
            page_order=shape.page_order,
            page_order_known=shape.two_pass is not None,
            acpi=acpi,
            smbios=smbios,
            fw_cfg=fw_cfg,
            qemu_version=shape.qemu_version,
            cpu_count=shape.cpu_count,
        )


class TdxBoot(NamedTuple):
    """Boot files: a kernel or a unified kernel image, with `-kernel` or from a disk."""

    kernel: bytes | None = None
    initrd: bytes | None = None
    cmdline: str = ""
    kernel_header_normalized: bool = False  # the firmware restores the header that QEMU changed
    shim: bytes | None = None  # of QEMU's `-shim`
    uki: bytes | None = None
    disk: GptTable | None = None
    boot_loaders: tuple[BootImage, ...] = ()  # from the disk, before kernel or image
    options: tuple[bytes, ...] | None = None  # EFI_LOAD_OPTIONs of devices; None if unknown
    option_order: tuple[int, ...] | None = None

    def input_digests(self) -> dict[str, bytes]:
        """Return the SHA-256 of each file, by name."""
        files = {"kernel": self.kernel, "initrd": self.initrd, "shim": self.shim, "uki": self.uki}
        files |= {image.name: image.data for image in self.boot_loaders}
        return {name: sha256(data) for name, data in files.items() if data is not None}

    @property
    def has_shim(self) -> bool:
        """Whether a shim is loaded."""
        return self.shim is not None or any(image.name == "shim" for image in self.boot_loaders)

    @property
    def has_unknown_options(self) -> bool:
        """Whether the firmware finds boot options that are not given."""
        return self.disk is not None and self.options is None

    def check(self) -> None:
        """Refuse files of other types, and of different kinds of boot together.

        Raises:
            UsageError: If a file is missing, has another type, or excludes another.
        """
        named = {"kernel": self.kernel, "initrd": self.initrd, "shim": self.shim, "uki": self.uki}
        for name, data in named.items():
            if data is not None:
                require_bytes(name, data)
        if self.kernel is None and self.uki is None:
            raise UsageError("kernel, uki: give one of them", reason="missing")
        if self.kernel is not None and self.uki is not None:
            raise UsageError("kernel, uki: give only one", reason="conflict")
        if self.uki is not None and self.initrd is not None:
            raise UsageError("initrd: a unified kernel image contains its own", reason="conflict")
        if self.uki is not None and self.disk is None and self.shim is not None:
            raise UsageError("shim: not with a unified kernel image", reason="conflict")
        if self.disk is not None and self.shim is not None:
            raise UsageError("shim: on a disk it is one of the boot loaders", reason="conflict")
        if self.disk is None and self.boot_loaders:
            raise UsageError("boot_loaders: need a disk", reason="not_applicable")


def given_tables(acpi: GivenTables | None) -> FoundTables | None:
    """Return ACPI tables with their origin; those of a caller are not called exact.

    Raises:
        FormatError: If they are malformed.
    """
    if acpi is None or isinstance(acpi, FoundTables):
        return acpi
    files = check_tables(AcpiTables(*acpi))
    return FoundTables(files, "folder", None, exact=False, basis="source")


def choose_shape(shape: MachineShape | None, machine: Mapping[str, object]) -> MachineShape:
    """Return the shape that is given as a whole or by its fields.

    Raises:
        UsageError: If it is given twice, or a field is unknown, missing or out of range.
    """
    if shape is not None:
        if machine:
            raise UsageError("shape and its fields: give only one", reason="conflict")
        return shape
    known = [one.name for one in fields(MachineShape)]
    for name in machine:
        if name not in known:
            message = f"machine: unknown: {shown(name)}{near(name, known)}"
            raise UsageError(message, reason="unknown_name")
    for name in ("cpu_count", "memory_size"):
        if name not in machine:
            raise UsageError(f"{name}: missing", reason="missing")
    return MachineShape(**cast("dict[str, Any]", machine))
