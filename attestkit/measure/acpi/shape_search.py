"""Search of a machine's shape by the digests of its ACPI tables.

The RSDP contains one number, where the RSDT is. The loader script depends on the tables' lengths
only, and these on few numbers, so both can be found from their digests by trying all values.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha384
from attestkit.measure.acpi.acpi_inputs import AcpiInputs
from attestkit.measure.acpi.acpi_tables import AcpiTable, AcpiTables
from attestkit.measure.acpi.interrupt_trigger import to_edge_triggered
from attestkit.measure.acpi.loader_script import build_loader
from attestkit.measure.acpi.table_entry import PACKAGED_LINES, packaged_entries

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
    """Lengths of a machine's tables.

    Attributes:
        dsdt_length: Bytes of the DSDT.
        cpu_count: Number of vCPUs.
        hpet: Whether there is an HPET.
        edge_triggered: Whether the MADT has the edge-triggered form.
    """

    dsdt_length: int
    cpu_count: int
    hpet: bool
    edge_triggered: bool


class PackagedMachine(NamedTuple):
    """A machine whose tables ship with the package."""

    line: str
    inputs: AcpiInputs
    edge_triggered: bool


def find_rsdt(rsdp_digest: bytes) -> int | None:
    """Return the offset of the RSDT in the tables, from the RSDP's digest; takes 0.2 s.

    The offset is the length of all tables before the RSDT, which is the last. None if the RSDP is
    not QEMU's.
    """
    for offset in range(_MAX_RSDT):
        if sha384(_RSDP_HEAD + offset.to_bytes(4, "little")) == rsdp_digest:
            return offset
    return None


def find_table_shape(loader_digest: bytes, rsdt: int) -> TableShape | None:
    """Return the lengths of the tables, from the loader script's digest and the RSDT's offset.

    None if the machine has other tables than q35 without NUMA, TPM, NVDIMM and IOMMU, or over 255
    vCPUs.
    """
    for shape in _possible_shapes(rsdt):
        if sha384(build_loader(_tables_of(shape))) == loader_digest:
            return shape
    return None


def find_packaged_machines(digests: tuple[bytes, bytes, bytes]) -> list[PackagedMachine]:
    """Return the machines of the package whose tables have these digests: loader, RSDP, tables."""
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
