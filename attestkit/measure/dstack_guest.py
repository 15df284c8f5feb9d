"""Expected measurements of a TD with a dstack OS image."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from attestkit._system.untrusted_files import AnyPath
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.measure.acpi import (
    TableCache,
    dstack_command,
    find_tables,
    read_machine,
    read_version,
)
from attestkit.measure.acpi.acpi_inputs import host_version
from attestkit.measure.acpi.table_sources import FoundTables
from attestkit.measure.expected import ExpectedMeasurements
from attestkit.measure.image_folder import DstackImage, read_dstack_image
from attestkit.measure.machine_shape import MachineShape
from attestkit.measure.rtmr0.rtmr0_events import AcpiBlobs
from attestkit.measure.rtmr0.smbios import set_processor_id
from attestkit.measure.tdx_guest import TdxBoot, TdxMachine, given_tables, measure_tdx

VmConfiguration: TypeAlias = str | Mapping[str, Any] | MachineShape
"""VM configuration as JSON text of the evidence or as its members, or a machine's shape."""

QemuProgram: TypeAlias = str | os.PathLike[str]
TableSource: TypeAlias = AcpiBlobs | FoundTables | str | os.PathLike[str]


class TableSources(NamedTuple):
    """Sources of ACPI and SMBIOS tables; the fields are arguments of `dstack_image`."""

    qemu: QemuProgram | None = None  # program that generates the tables
    acpi: TableSource | None = None  # the ACPI tables themselves, or another source of them
    smbios: bytes | None = None  # the SMBIOS tables
    processor_id: tuple[int, int] | None = None  # EAX and EDX of CPUID leaf 1, in SMBIOS tables
    cache: TableCache | None = None  # of generated tables


def dstack_image(
    image: AnyPath | DstackImage,
    vm_config: VmConfiguration,
    *,
    qemu: QemuProgram | None = None,
    acpi: TableSource | None = None,
    smbios: bytes | None = None,
    processor_id: tuple[int, int] | None = None,
    cache: TableCache | None = None,
) -> ExpectedMeasurements:
    """Return the expected MRTD and RTMR0 to RTMR2 of a TD with a dstack OS image.

    Without `acpi`, the ACPI tables are those that `find_tables` finds.

    Args:
        image: Folder or archive of the image, or what `read_dstack_image` returned.
        vm_config: VM configuration: its JSON text, its members, or a machine's shape.
        qemu: QEMU's program, which makes the ACPI tables. None: no program is run.
        acpi: ACPI tables, or a folder with the three files.
        smbios: SMBIOS table of QEMU, for firmware that measures it. None: see `processor_id`.
        processor_id: EAX and EDX of CPUID leaf 1 of the host. With it, a `qemu` of the host's
            release of QEMU makes the SMBIOS table too. Without it and `smbios`, the digest of the
            table is unknown.
        cache: Cache of tables that `qemu` made. None: they are not stored.

    Raises:
        FormatError: If image, configuration, a table or QEMU's data are malformed, or over a limit.
        UsageError: If a file cannot be opened, both `qemu` and a folder `acpi` are given, the host
            share mode is unknown, or the memory is too small.
        ConfigError: If QEMU is missing, cannot be executed, or refuses the options.
        BackendError: If QEMU does not answer in time, or not in the protocol.
    """
    found = image if isinstance(image, DstackImage) else read_dstack_image(image)
    measured = measure_shape(
        found.firmware,
        TdxBoot(
            kernel=found.kernel,
            initrd=found.initrd,
            cmdline=found.cmdline,
            kernel_header_normalized=found.kernel_header_normalized,
        ),
        _shape(vm_config),
        TableSources(qemu, acpi, smbios, processor_id, cache),
    )
    settings = dict(measured.settings)
    if found.version is not None:
        settings["image"] = found.version
    return replace(measured, os_image_hash=found.os_image_hash, settings=settings)


def measure_shape(
    firmware: bytes, boot: TdxBoot, shape: MachineShape, sources: TableSources
) -> ExpectedMeasurements:
    """Return the expected measurements of a TD on a machine of dstack; see `dstack_image`.

    Args:
        firmware: Image of OVMF.
        boot: Kernel, initrd and command line.
        shape: Shape of the machine.
        sources: Sources of its ACPI and SMBIOS tables.

    Raises:
        AttestKitError: As for `dstack_image`.
    """
    smbios = sources.smbios
    if smbios is None:
        smbios = _smbios(shape, sources.qemu, sources.processor_id)
    machine = TdxMachine.of_shape(shape, acpi=given_tables(_tables(shape, sources)), smbios=smbios)
    return measure_tdx(firmware, boot, machine)


def _shape(config: VmConfiguration) -> MachineShape:
    if isinstance(config, MachineShape):
        return config
    fields = VmConfig.parse(config).fields if isinstance(config, str) else config
    return MachineShape.from_vm_config(fields)


def _smbios(
    shape: MachineShape, qemu: QemuProgram | None, processor_id: tuple[int, int] | None
) -> bytes | None:
    """Return the SMBIOS table that the program `qemu` makes for the machine.

    None without `qemu` or `processor_id` (EAX and EDX of CPUID leaf 1 of the host), or if `qemu` is
    not of the same release as the host's QEMU.
    """
    if processor_id is None or qemu is None:
        return None
    host = host_version(shape)
    if host is None or read_version(os.fspath(qemu)).release != host.release:
        return None
    return set_processor_id(read_machine(dstack_command(shape, qemu)).smbios_tables, *processor_id)


def _tables(shape: MachineShape, sources: TableSources) -> AcpiBlobs | FoundTables | None:
    acpi = sources.acpi
    if acpi is None or isinstance(acpi, str | os.PathLike):
        return find_tables(shape, qemu=sources.qemu, folder=acpi, cache=sources.cache)
    return acpi
