"""Expected measurements of a TD with a dstack OS image."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from attestkit._system.untrusted_files import AnyPath
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.measure.acpi import TableCache, find_tables
from attestkit.measure.acpi.table_sources import FoundTables
from attestkit.measure.dstack_image import DstackImage, read_dstack_image
from attestkit.measure.expected import ExpectedMeasurements
from attestkit.measure.machine_shape import MachineShape
from attestkit.measure.rtmr0 import AcpiBlobs
from attestkit.measure.tdx_guest import tdx

VmConfiguration: TypeAlias = str | Mapping[str, Any] | MachineShape
"""JSON text of the evidence, its members, or a shape."""

TableSource: TypeAlias = AcpiBlobs | FoundTables | str | os.PathLike[str]


def dstack_image(
    image: AnyPath | DstackImage,
    vm_config: VmConfiguration,
    *,
    qemu: str | os.PathLike[str] | None = None,
    acpi: TableSource | None = None,
    smbios: bytes | None = None,
    cache: TableCache | None = None,
) -> ExpectedMeasurements:
    """Return the expected MRTD and RTMR0 to RTMR2 of a TD with a dstack OS image.

    Without `acpi`, the ACPI tables are those that `find_tables` finds.

    Args:
        image: Folder or archive of the image, or what `read_dstack_image` returned.
        vm_config: VM configuration.
        qemu: QEMU's program, which makes the ACPI tables.
        acpi: ACPI tables, or a folder with the three files.
        smbios: SMBIOS table of QEMU, for firmware that measures it.
        cache: Cache of tables that `qemu` made.

    Raises:
        FormatError: If image or configuration are malformed, or exceed a limit.
        UsageError: If a file cannot be opened, or both `qemu` and `acpi` are given.
        ConfigError: If QEMU is missing, or cannot be executed.
        BackendError: If QEMU does not answer.
    """
    found = image if isinstance(image, DstackImage) else read_dstack_image(image)
    shape = _shape(vm_config)
    measured = tdx(
        firmware=found.firmware,
        kernel=found.kernel,
        initrd=found.initrd,
        cmdline=found.cmdline,
        shape=shape,
        acpi=_tables(shape, qemu, acpi, cache),
        smbios=smbios,
    )
    versions = dict(measured.versions)
    if found.version is not None:
        versions["image"] = found.version
    return replace(measured, os_image_hash=found.os_image_hash, versions=versions)


def _shape(config: VmConfiguration) -> MachineShape:
    if isinstance(config, MachineShape):
        return config
    fields = VmConfig.parse(config).fields if isinstance(config, str) else config
    return MachineShape.from_vm_config(fields)


def _tables(
    shape: MachineShape,
    qemu: str | os.PathLike[str] | None,
    acpi: TableSource | None,
    cache: TableCache | None,
) -> AcpiBlobs | FoundTables | None:
    if acpi is None or isinstance(acpi, str | os.PathLike):
        return find_tables(shape, qemu=qemu, folder=acpi, cache=cache)
    return acpi
