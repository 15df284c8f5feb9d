"""The shape of a guest: as the host states it, or found from digests of its RTMR0 alone.

All values on which the measured data depend are tried until the SHA-384 agrees, so values that are
found are certain.

The RSDP depends on one number, the RSDT's offset in the tables. The loader script depends on the
tables' lengths only, and these on few numbers. So both can be found from their digests.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from attestkit._crypto.hashes import sha384
from attestkit.attestation import Attestation
from attestkit.attestation.launch.td_hob import SPLIT_MEMORY, memory_ranges
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import Event
from attestkit.event_log.event_types import HANDOFF_TABLES2
from attestkit.measure.acpi.acpi_inputs import AcpiInputs
from attestkit.measure.acpi.acpi_tables import AcpiTable, AcpiTables, build_loader
from attestkit.measure.acpi.derived_tables import to_edge_triggered
from attestkit.measure.acpi.packaged_tables import PACKAGED_LINES, packaged_entries
from attestkit.measure.diagnosis.logged_event import acpi_digests
from attestkit.measure.expected import events_of
from attestkit.measure.firmware.tdvf import TD_HOB, TEMP_MEM, TdvfSection
from attestkit.measure.machine_shape import OTHER_DEVICES, MachineShape
from attestkit.measure.rtmr0.rtmr0_events import build_td_hob

_RSDP_HEAD: Final = b"RSD PTR \0BOCHS \0"  # with checksum 0 and revision 0
_MAX_RSDT: Final = 1 << 17  # size of the tables' file

_EDGE_LINES: Final = ("8.2",)  # of which there are TDX branches with edge-triggered interrupts

_FACS, _FACP, _MCFG, _WAET, _HPET = 64, 244, 60, 40, 56  # bytes
_MADT: Final = 112  # bytes without vCPUs
_MADT_VCPU: Final = 8
_EDGE_GROWTH: Final = 110
_MAX_VCPUS: Final = 255  # more have structures of another size
_SDT_HEADER: Final = 36


class TableShape(NamedTuple):
    """The numbers on which the lengths of a machine's tables depend.

    Attributes:
        dsdt_length: Bytes of the DSDT.
        cpu_count: Number of vCPUs.
        hpet: Whether there is an HPET.
        edge_triggered: Whether the MADT declares edge-triggered interrupts.
    """

    dsdt_length: int
    cpu_count: int
    hpet: bool
    edge_triggered: bool


class PackagedMachine(NamedTuple):
    """A machine whose ACPI tables ship with attestkit.

    Attributes:
        line: Release line of QEMU of the tables, such as `9.2`.
        inputs: Properties of the machine.
        edge_triggered: Whether the tables have edge-triggered interrupts.
    """

    line: str
    inputs: AcpiInputs
    edge_triggered: bool


def find_rsdt(rsdp_digest: bytes) -> int | None:
    """Return the offset of the RSDT in `etc/acpi/tables`, in bytes; takes 0.2 s.

    It is found from the SHA-384 of the RSDP, and is the length of all tables before the RSDT, which
    is the last. None if the RSDP is not QEMU's.
    """
    for offset in range(_MAX_RSDT):
        if sha384(_RSDP_HEAD + offset.to_bytes(4, "little")) == rsdp_digest:
            return offset
    return None


def find_table_shape(loader_digest: bytes, rsdt: int) -> TableShape | None:
    """Return the numbers that determine the tables' lengths, from the loader script's SHA-384.

    `rsdt` is the offset of the RSDT in `etc/acpi/tables`, in bytes. None if the machine is not a
    q35 of up to 255 vCPUs without NUMA, TPM, NVDIMM and IOMMU.
    """
    for shape in _possible_shapes(rsdt):
        if sha384(build_loader(_tables_of(shape))) == loader_digest:
            return shape
    return None


def find_packaged_machines(digests: tuple[bytes, bytes, bytes]) -> list[PackagedMachine]:
    """Return the machines whose shipped tables have these digests; empty if there are none.

    They are the SHA-384 of loader script, RSDP and tables.
    """
    return [
        PackagedMachine(line, entry.inputs, edge)
        for line in PACKAGED_LINES
        for entry in packaged_entries(line)
        for edge, files in _forms(line, entry.files)
        if sha384(files.rsdp) == digests[1] and files.digests() == digests
    ]


def _possible_shapes(rsdt: int) -> Iterator[TableShape]:
    for edge_triggered in (False, True):
        for hpet in (False, True):
            for cpu_count in range(1, _MAX_VCPUS + 1):
                rest = _FACS + _FACP + _MCFG + _WAET + _madt_length(cpu_count, edge_triggered)
                dsdt = rsdt - rest - _HPET * hpet
                if dsdt >= _SDT_HEADER:
                    yield TableShape(dsdt, cpu_count, hpet, edge_triggered)


def _madt_length(cpu_count: int, edge_triggered: bool) -> int:  # noqa: FBT001 - a field's value
    return _MADT + _MADT_VCPU * cpu_count + _EDGE_GROWTH * edge_triggered


def _tables_of(shape: TableShape) -> list[AcpiTable]:
    lengths = {"FACS": _FACS, "DSDT": shape.dsdt_length, "FACP": _FACP}
    lengths["APIC"] = _madt_length(shape.cpu_count, shape.edge_triggered)
    if shape.hpet:
        lengths["HPET"] = _HPET
    lengths |= {"MCFG": _MCFG, "WAET": _WAET}
    lengths["RSDT"] = _SDT_HEADER + 4 * (len(lengths) - 2)  # all but FACS and DSDT
    tables, offset = [], 0
    for signature, length in lengths.items():
        tables.append(AcpiTable(signature, offset, length))
        offset += length
    return tables


def _forms(line: str, files: AcpiTables) -> Iterator[tuple[bool, AcpiTables]]:
    yield False, files
    if line in _EDGE_LINES:
        yield True, to_edge_triggered(files)


_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_FINE: Final = 64 * _GIB  # up to this size all MiB are tried, then all GiB
_MOST_MEMORY: Final = 1 << 45
_TEMP_MEM_STARTS: Final = (0x810000, 0x811000)  # of OVMF, which depends on the build
_TEMP_MEM_END: Final = 0x820000


class FoundMemory(NamedTuple):
    """A memory size and firmware sections whose TD HOB has the digest in a log.

    Attributes:
        size: Bytes of memory.
        sections: Sections of the firmware, which the TD HOB lists.
    """

    size: int
    sections: tuple[TdvfSection, ...]


class AcpiShape(NamedTuple):
    """Properties of a machine, found from the digests of its ACPI tables.

    Attributes:
        digests: SHA-384 of loader script, RSDP and tables, as RTMR0 has them.
        rsdt: Offset of the RSDT in `etc/acpi/tables`, in bytes: the length of all tables before
            it. None if the RSDP is not QEMU's.
        tables: Length of the DSDT, number of vCPUs, HPET, interrupt trigger. None if the machine is
            not a q35 of up to 255 vCPUs without NUMA, TPM, NVDIMM and IOMMU.
        machines: All machines of the packaged tables that have these digests; empty if none has.
    """

    digests: tuple[bytes, bytes, bytes]
    rsdt: int | None
    tables: TableShape | None
    machines: tuple[PackagedMachine, ...]


class GuestShape(NamedTuple):
    """Memory and ACPI properties of a guest, found from its log; None for unknown parts."""

    memory: FoundMemory | None
    acpi: AcpiShape | None


def find_guest_shape(rtmr0: Sequence[Event]) -> GuestShape:
    """Return the shape of the guest whose RTMR0 has these events; takes about a second at most."""
    hobs = [event.digest for event in rtmr0 if event.event_type == HANDOFF_TABLES2]
    memory = find_memory(hobs[0]) if hobs else None
    digests = acpi_digests(rtmr0)
    return GuestShape(memory, None if digests is None else find_acpi_shape(digests))


def find_acpi_shape(digests: tuple[bytes, bytes, bytes]) -> AcpiShape:
    """Return a machine's properties, found from the digests of its ACPI tables; takes 0.3 s.

    They are the SHA-384 of loader script, RSDP and tables.
    """
    rsdt = find_rsdt(digests[1])
    tables = None if rsdt is None else find_table_shape(digests[0], rsdt)
    return AcpiShape(digests, rsdt, tables, tuple(find_packaged_machines(digests)))


def find_memory(digest: bytes, sections: Sequence[TdvfSection] | None = None) -> FoundMemory | None:
    """Return the memory whose TD HOB has a digest; None if no tried size does; takes 0.4 s.

    Sizes tried are multiples of 1 MiB up to 64 GiB, and of 1 GiB up to 32 TiB, without
    `max-ram-below-4g`.

    Args:
        digest: SHA-384 of a TD HOB.
        sections: Sections of the firmware; by default both known layouts of OVMF are tried.
    """
    for tried in [tuple(sections)] if sections else ovmf_sections():
        size = _find_size(digest, tried)
        if size is not None:
            return FoundMemory(size, tried)
    return None


def ovmf_sections() -> list[tuple[TdvfSection, ...]]:
    """Return the sections of OVMF that a TD HOB lists, for each of its known memory layouts."""
    return [
        (
            TdvfSection(0, 0, start, _TEMP_MEM_END - start, TEMP_MEM, 0),
            TdvfSection(0, 0, 0x80B000, 0x2000, TEMP_MEM, 0),
            TdvfSection(0, 0, 0x809000, 0x2000, TD_HOB, 0),
            TdvfSection(0, 0, 0x800000, 0x6000, TEMP_MEM, 0),
        )
        for start in _TEMP_MEM_STARTS
    ]


def other_builds(sections: Iterable[TdvfSection]) -> list[tuple[TdvfSection, ...]]:
    """Return the known layouts of OVMF whose TD HOB differs from that of `sections`."""
    listed = _listed(sections)
    return [tried for tried in ovmf_sections() if _listed(tried) != listed]


def _listed(sections: Iterable[TdvfSection]) -> list[tuple[int, int, int]]:
    return [
        (section.kind, section.address, section.size)
        for section in sections
        if section.kind in {TD_HOB, TEMP_MEM}
    ]


def _find_size(digest: bytes, sections: Sequence[TdvfSection]) -> int | None:
    """Return the bytes of memory whose TD HOB has this SHA-384; None if no tried size has it.

    `sections` are those of the firmware. TD HOBs with equally many ranges of memory differ only in
    their last 8 bytes, the length of the last range.
    """
    used = [end for _, start, size in _listed(sections) if (end := start + size) < SPLIT_MEMORY]
    smallest = (max(used, default=0) // _MIB + 1) * _MIB
    for first, sizes in (
        (smallest, range(smallest, SPLIT_MEMORY, _MIB)),
        (SPLIT_MEMORY, _large_sizes()),
    ):
        try:
            hob = build_td_hob(sections, memory_ranges(first))
        except UsageError:  # of a firmware that uses other memory
            continue
        prefix, least = hashlib.sha384(hob[:-8]), int.from_bytes(hob[-8:], "little")
        for size in sizes:
            tried = prefix.copy()
            tried.update((least + size - first).to_bytes(8, "little"))
            if tried.digest() == digest:
                return size
    return None


def _large_sizes() -> Iterator[int]:
    yield from range(SPLIT_MEMORY, _FINE, _MIB)
    yield from range(_FINE, _MOST_MEMORY + 1, _GIB)


ShapeSource = Literal["search", "vm_config"]
"""Source of a shape. `vm_config`: stated by the host, and confirmed by no signature. `search`:
found from digests of the log, so that events which depend on it are as expected."""


def read_machine_shape(evidence: Attestation) -> tuple[MachineShape, ShapeSource]:
    """Return the shape in the VM configuration of evidence, else the one that its log reveals.

    With it comes where it is from: `vm_config` or `search`.

    Raises:
        FormatError: If the configuration is malformed or unsupported, or if it is missing and the
            log does not reveal memory and vCPUs.
    """
    fields = VmConfig.parse(evidence.config).fields
    if "cpu_count" in fields or "memory_size" in fields:
        return MachineShape.from_vm_config(fields), "vm_config"
    shape = to_machine_shape(find_guest_shape(events_of(evidence.event_log, 0)))
    if shape is None:
        message = "evidence: must have a VM configuration, or a log that shows memory and vCPUs"
        raise FormatError(message, reason="missing")
    return shape, "search"


def to_machine_shape(found: GuestShape) -> MachineShape | None:
    """Return a machine's shape that has the same tables as `found`.

    None if memory or number of vCPUs is unknown. Tables show the number of devices, not their
    kinds. Of the devices of PCI bus 0 beyond the three of every machine, the shape has one as root
    disk if there are two or more, and the others as network cards; each root port has a GPU.
    """
    if found.memory is None or found.acpi is None:
        return None
    size = found.memory.size
    for machine in found.acpi.machines:
        return _shape_of(machine.inputs, machine.line, size)
    if found.acpi.tables is None:
        return None
    return MachineShape(cpu_count=found.acpi.tables.cpu_count, memory_size=size)


def _shape_of(inputs: AcpiInputs, line: str, memory_size: int) -> MachineShape:
    disk = inputs.endpoints > OTHER_DEVICES + 1
    return MachineShape(
        cpu_count=inputs.cpu_count,
        memory_size=memory_size,
        qemu_version=line,
        pic=inputs.pic,
        pci_hole64_size=inputs.pci_hole64_size,
        hotplug_off=inputs.hotplug_off,
        num_gpus=inputs.root_ports,
        num_nics=inputs.endpoints - OTHER_DEVICES - disk,
        root_disk=disk,
    )
