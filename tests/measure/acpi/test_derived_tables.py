"""Tests of tables of QEMU 8.2 and 9.2 that are derived from those of QEMU 10.0."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.measure.acpi import find_tables, to_edge_triggered
from attestkit.measure.acpi.acpi_inputs import AcpiInputs
from attestkit.measure.acpi.acpi_tables import AcpiTables, check_tables
from attestkit.measure.acpi.derived_tables import BASE_LINE, can_derive, derive_tables
from attestkit.measure.acpi.packaged_tables import packaged_entries, packaged_tables
from attestkit.measure.acpi.qemu.qemu_command import DEFAULT_PROGRAM, inputs_command
from attestkit.measure.acpi.qemu.qemu_machine import read_machine
from attestkit.measure.acpi.table_entry import TableEntry, TableKey
from tests.measure.acpi.machines import installed_version, needs_qemu, shape_of
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

MEASURED = [(line, entry) for line in ("8.2", "9.2") for entry in packaged_entries(line)]
PLAIN = MEASURED[0][1].inputs
ONE_VCPU_LOG = "dstack/upstream-312dc605/verifier/agent_getquote.json"


def base_of(inputs: AcpiInputs) -> AcpiTables:
    """Return the package's tables of a machine on the base line."""
    entry = packaged_tables(BASE_LINE, TableKey(inputs._replace(pic=False)))
    assert entry is not None
    return entry.files


def acpi_events(log: list[dict[str, Any]]) -> list[bytes]:
    """Return the digests of the ACPI events of an agent's log."""
    prefix = b"ACPI DATA".hex()
    return [
        bytes.fromhex(event["digest"])
        for event in log
        if event["imr"] == 0 and event["event_payload"].lower() == prefix
    ]


@every_case(("line", "entry"), MEASURED)
def test_derived_tables_equal_measured_ones(line: str, entry: TableEntry) -> None:
    """The tables of all measured machines follow from those of QEMU 10.0."""
    assert can_derive(line, entry.inputs)
    assert derive_tables(line, entry.inputs, base_of(entry.inputs)) == entry.files


@needs_qemu
@needs_shared
def test_derived_tables_equal_those_of_a_log_that_was_not_used() -> None:
    """A guest with 1 vCPU, 1 GiB and 4 devices on QEMU 8.2 measured the derived tables."""
    if installed_version().line != BASE_LINE:
        pytest.skip(f"QEMU {installed_version()} is installed")
    evidence = json.loads(data(ONE_VCPU_LOG))
    log = evidence["event_log"]
    events = acpi_events(json.loads(log) if isinstance(log, str) else log)
    shape = shape_of(cpu_count=1, memory_size=1 << 30, qemu_version="8.2.2", root_disk=False)
    found = find_tables(shape, qemu=DEFAULT_PROGRAM)
    assert found is not None
    assert (found.origin, found.exact) == ("derived", False)
    assert list(found.files.digests()) == events


@every_case("cpu_count", [1, 2, 3, 16, 17, 64, 96, 224])
def test_derived_tables_are_well_formed(cpu_count: int) -> None:
    """Tables of every size have valid offsets, so that the edge-triggered form follows."""
    inputs = PLAIN._replace(cpu_count=cpu_count)
    files = derive_tables("8.2", inputs, base_of(inputs))
    names = [table.signature for table in files.list_tables()]
    assert names == ["FACS", "DSDT", "FACP", "APIC", "MCFG", "WAET", "RSDT"]
    assert check_tables(to_edge_triggered(files))
    rsdt = files.list_tables()[-1]
    assert int.from_bytes(files.rsdp[16:20], "little") == rsdt.offset


@every_case(
    ("line", "changes", "expected"),
    [
        ("8.2", {}, True),
        ("8.2", {"cpu_count": 255, "endpoints": 9, "low_memory": 1 << 30, "pic": False}, True),
        ("8.2", {"hotplug_off": True}, False),
        ("8.2", {"root_ports": 1}, False),
        ("8.2", {"pci_hole64_size": 1 << 44}, False),
        ("8.2", {"cpu_count": 256}, False),
        ("9.2", {"hotplug_off": True}, True),
        ("9.2", {"hotplug_off": True, "root_ports": 4, "pci_hole64_size": 1 << 44}, True),
        ("9.2", {}, False),
        ("9.0", {}, False),
        ("11.1", {"hotplug_off": True}, False),
    ],
)
def test_can_derive_only_what_was_measured(
    line: str, changes: dict[str, Any], expected: bool
) -> None:
    """A machine with what no measured machine of its line has is not derived."""
    assert can_derive(line, PLAIN._replace(**changes)) is expected


def test_find_tables_derives_from_package() -> None:
    """A usual machine of an older line needs no QEMU; its tables are not called exact."""
    found = find_tables(shape_of(cpu_count=16, memory_size=64 << 30, qemu_version="8.2.2"))
    assert found is not None
    assert (found.origin, found.exact, found.basis) == ("derived", False, "source")
    assert found.qemu_version is not None
    assert found.qemu_version.line == BASE_LINE
    other = shape_of(cpu_count=16, qemu_version="8.2.2", num_gpus=1)
    assert find_tables(other) is None


@needs_qemu
def test_pic_changes_one_bit_of_the_tables() -> None:
    """A PIC is a flag of the MADT, and nothing else."""
    inputs = PLAIN._replace(pic=False)
    off, on = (
        read_machine(inputs_command(inputs._replace(pic=pic), memory_size=2 << 30)).acpi
        for pic in (False, True)
    )
    changed = [at for at in range(len(off.tables)) if off.tables[at] != on.tables[at]]
    madt = next(table for table in off.list_tables() if table.signature == "APIC")
    assert changed == [madt.offset + 40]
    assert (off.loader, off.rsdp) == (on.loader, on.rsdp)


def test_derive_tables_rejects_tables_without_method() -> None:
    """The base must be of the expected line."""
    base = base_of(PLAIN)
    with raises(FormatError, "inconsistent"):
        derive_tables("8.2", PLAIN, base._replace(tables=base.tables.replace(b"CSCN", b"XXXX")))
    with raises(FormatError, "missing"):
        derive_tables("8.2", PLAIN, base._replace(tables=base.tables.replace(b"DSDT", b"XXXX")))


@given(st.integers(0, 9000), st.integers(0, 255))
def test_derive_tables_from_changed_base_is_tables_or_format_error(at: int, new: int) -> None:
    """A malformed base gives a FormatError and nothing else."""
    base = base_of(PLAIN)
    tables = base.tables[:at] + bytes([new]) + base.tables[at + 1 :]
    try:
        result = derive_tables("8.2", PLAIN, base._replace(tables=tables))
    except FormatError:
        return
    assert check_tables(result)
