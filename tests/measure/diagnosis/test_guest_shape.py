"""Tests of the search for a machine's shape from digests of its ACPI tables."""

from typing import Any

import pytest

from attestkit._crypto.hashes import sha384
from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.measure.acpi import to_edge_triggered
from attestkit.measure.acpi.acpi_inputs import acpi_inputs
from attestkit.measure.acpi.acpi_tables import build_loader
from attestkit.measure.acpi.packaged_tables import PACKAGED_LINES, packaged_entries
from attestkit.measure.acpi.qemu.qemu_machine import read_machine
from attestkit.measure.acpi.qemu.user_command import clean_command
from attestkit.measure.diagnosis.guest_shape import (
    PackagedMachine,
    TableShape,
    find_packaged_machines,
    find_rsdt,
    find_table_shape,
)
from tests.measure.acpi.machines import installed_version, machine, needs_qemu
from tests.runner.cases import every_case
from tests.vectors import load, needs_shared

VECTORS: dict[str, Any] = load("measurement.json")
REAL: list[dict[str, Any]] = VECTORS.get("real_rtmr0", [])
RSDT_ROWS = [row for row in VECTORS.get("diagnosis", []) if "rsdt_offset" in row]


def acpi_digests(row: dict[str, Any]) -> tuple[bytes, bytes, bytes]:
    """Return the digests of a log's three ACPI events."""
    found = {name: bytes.fromhex(digest) for name, digest in row["events"]}
    return found["acpi-loader"], found["acpi-rsdp"], found["acpi-tables"]


@needs_shared
@pytest.mark.parametrize("row", REAL, ids=lambda row: row["name"])
def test_shape_of_measured_machine_is_found(row: dict[str, Any]) -> None:
    """From three digests of a log follow the tables' lengths, the vCPUs, and the whole machine."""
    digests, shape = acpi_digests(row), machine(row["vm"])
    tables = {name: length for name, _, length in row["acpi_tables"]}
    rsdt = find_rsdt(digests[1])
    assert rsdt is not None
    assert rsdt == sum(tables.values()) - tables["RSDT"]
    edge = bool(row["edge_triggered"])
    assert find_table_shape(digests[0], rsdt) == TableShape(
        tables["DSDT"], shape.cpu_count, hpet=False, edge_triggered=edge
    )
    line = QemuVersion.parse(shape.qemu_version).line
    assert find_packaged_machines(digests) == [PackagedMachine(line, acpi_inputs(shape), edge)]


@needs_shared
def test_rsdt_of_digest_is_found() -> None:
    """The RSDP's digest gives the RSDT's offset."""
    assert len(RSDT_ROWS) == 1
    for row in RSDT_ROWS:
        assert find_rsdt(bytes.fromhex(row["digest"])) == row["rsdt_offset"]


@every_case("line", PACKAGED_LINES)
def test_build_loader_equals_that_of_every_packaged_machine(line: str) -> None:
    """The script follows from the list of tables, in both forms of the interrupts."""
    for entry in packaged_entries(line):
        assert build_loader(entry.files.list_tables()) == entry.files.loader
    edge = to_edge_triggered(entry.files)
    assert build_loader(edge.list_tables()) == edge.loader


@needs_qemu
def test_machine_with_hpet_is_found() -> None:
    """A machine of another command line has an HPET."""
    command = "-nodefaults -machine q35 -m 2G -smp 7"
    files = read_machine(clean_command(command, installed_version()).command).acpi
    loader, rsdp, _ = files.digests()
    rsdt = find_rsdt(rsdp)
    assert rsdt is not None
    found = find_table_shape(loader, rsdt)
    assert found is not None
    assert (found.cpu_count, found.hpet, found.edge_triggered) == (7, True, False)
    assert found.dsdt_length == files.list_tables()[1].length
    assert find_packaged_machines(files.digests()) == []


def test_unknown_digests_are_not_found() -> None:
    """Digests of other bytes give nothing."""
    other = sha384(b"other")
    assert find_rsdt(other) is None
    assert find_table_shape(other, 9000) is None
    assert find_table_shape(other, 0) is None
    entry = next(packaged_entries("9.2"))
    loader, rsdp, tables = entry.files.digests()
    assert find_packaged_machines((loader, rsdp, other)) == []
    assert find_packaged_machines((loader, rsdp, tables))[0].inputs == entry.inputs
