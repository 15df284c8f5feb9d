"""Tests against the rows of `measurement.json` that have ACPI tables."""

import base64
import hashlib
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.measure.acpi import (
    AcpiTables,
    clean_command,
    dstack_command,
    find_tables,
    read_machine,
    to_edge_triggered,
)
from attestkit.measure.acpi.acpi_inputs import acpi_inputs
from attestkit.measure.acpi.packaged_tables import packaged_tables
from attestkit.measure.acpi.table_entry import TableKey
from tests.measure.acpi.machines import (
    installed_version,
    machine,
    needs_qemu,
    read_kernel,
    shape_of,
)
from tests.measure.rows import kernel_file
from tests.vectors import SHARED, load, needs_shared

VECTORS: dict[str, Any] = load("measurement.json")
REAL: list[dict[str, Any]] = VECTORS.get("real_rtmr0", [])
PUBLISHED: list[dict[str, Any]] = VECTORS.get("published_rtmr0", [])
GUESTS: list[dict[str, Any]] = VECTORS.get("guests", [])
QEMU_TABLES: list[dict[str, Any]] = VECTORS.get("qemu_tables", [])
KERNELS: list[dict[str, Any]] = VECTORS.get("patched_kernel", [])
ACPI_EVENTS = ("acpi-loader", "acpi-rsdp", "acpi-tables")


def name_of(row: dict[str, Any]) -> str:
    """Return a row's name, as an id for pytest."""
    return str(row.get("name") or f"{row['qemu']}, {row['vm']['cpu_count']} vCPUs")


def blobs_of(row: dict[str, Any]) -> AcpiTables:
    """Return the tables of a row."""
    blobs = row["qemu_blobs"]
    loader, tables = (
        zlib.decompress(base64.b64decode(blobs[name])) for name in ("loader", "tables")
    )
    return AcpiTables(loader, bytes.fromhex(blobs["rsdp"]), tables)


def events_of(row: dict[str, Any]) -> list[str]:
    """Return the digests of the three ACPI events of a row."""
    found = {event[-2]: event[-1] for event in row["events"]}
    return [found[name] for name in ACPI_EVENTS]


def hexed(files: AcpiTables) -> list[str]:
    """Return the digests of tables."""
    return [digest.hex() for digest in files.digests()]


def made_by(row: dict[str, Any]) -> QemuVersion:
    """Return the QEMU that made a row's tables: those of guests are all of Debian's 10.0.13."""
    return QemuVersion.parse("10.0.13" if "firmware" in row else row["vm"]["qemu_version"])


@needs_shared
def test_vectors_have_expected_rows() -> None:
    """All rows with ACPI tables are tested."""
    assert [len(rows) for rows in (REAL, PUBLISHED, GUESTS, QEMU_TABLES)] == [5, 1, 7, 4]


@needs_shared
@pytest.mark.parametrize("row", REAL, ids=name_of)
def test_packaged_tables_equal_those_that_hardware_signed(row: dict[str, Any]) -> None:
    """The package has the tables of the measured machines, and the log's digests follow."""
    found = find_tables(machine(row["vm"]))
    assert found is not None
    assert (found.origin, found.exact, found.basis) == ("package", True, "hardware")
    assert hexed(found.files) == events_of(row)
    tables = [list(table) for table in found.files.list_tables()]
    assert tables == row["acpi_tables"]


@needs_shared
@pytest.mark.parametrize("row", REAL, ids=name_of)
def test_to_edge_triggered_gives_digests_of_td_branches(row: dict[str, Any]) -> None:
    """QEMU's files have the row's digests, and the edge-triggered form those of the events."""
    files = blobs_of(row)
    assert hexed(files) == row["qemu_digests"]
    seen = to_edge_triggered(files) if row["edge_triggered"] else files
    assert hexed(seen) == events_of(row)
    assert to_edge_triggered(seen) == seen or not row["edge_triggered"]


@needs_shared
@pytest.mark.parametrize("row", GUESTS, ids=name_of)
def test_packaged_tables_equal_those_of_guests(row: dict[str, Any]) -> None:
    """The package has the tables of the computed guests."""
    found = find_tables(replace(machine(row["vm"]), qemu_version=str(made_by(row))))
    assert found is not None
    assert found.origin == "package"
    assert found.exact
    assert found.files == blobs_of(row)
    assert hexed(found.files) == events_of(row)


@needs_shared
@pytest.mark.parametrize("row", QEMU_TABLES, ids=name_of)
def test_packaged_tables_equal_those_of_qemu(row: dict[str, Any]) -> None:
    """The package has the tables of the rows made with Debian's QEMU."""
    shape = machine(row["vm"])
    version = made_by(row)
    entry = packaged_tables(version.line, TableKey(acpi_inputs(shape)))
    assert entry is not None
    assert entry.qemu_version == version
    assert hexed(entry.files) == [row["loader"], row["rsdp"], row["tables_sha384"]]
    assert [list(table) for table in entry.files.list_tables()] == row["tables"]


@pytest.mark.slow
@needs_qemu
@needs_shared
@pytest.mark.parametrize("row", [*QEMU_TABLES, *GUESTS], ids=name_of)
def test_read_machine_equals_row(row: dict[str, Any]) -> None:
    """The installed QEMU makes the tables and memory ranges of the row, if it is of its line."""
    shape = machine(row["vm"])
    if made_by(row).line != installed_version().line:
        pytest.skip(f"made with QEMU {made_by(row)}; {installed_version()} is installed")
    command = dstack_command(shape)
    for name in ("kernel", "initrd"):
        if row.get(name):
            command += [f"-{name}", str(SHARED / row[name])]
    found = read_machine(command)
    if "loader" in row:
        assert hexed(found.acpi) == [row["loader"], row["rsdp"], row["tables_sha384"]]
    else:
        assert hexed(found.acpi) == events_of(row)
        assert found.boot_menu.hex() == row["boot_menu"]
        assert found.boot_order.hex() == row["boot_order"]
        assert found.extra_pci_roots.hex() == row["extra_roots"]
    assert [list(pair) for pair in found.ranges] == row["ranges"]


@pytest.mark.slow
@needs_qemu
@needs_shared
@pytest.mark.parametrize("row", [*PUBLISHED, *GUESTS, *QEMU_TABLES], ids=name_of)
def test_clean_command_keeps_tables_of_row(row: dict[str, Any]) -> None:
    """The row's whole command line, cleaned, gives the row's tables on a QEMU of its line."""
    version = installed_version()
    if made_by(row).line != version.line:
        pytest.skip(f"made with QEMU {made_by(row)}; {version} is installed")
    found = read_machine(clean_command(row["argv"], version).command)
    if "loader" in row:
        assert hexed(found.acpi) == [row["loader"], row["rsdp"], row["tables_sha384"]]
    else:
        assert found.acpi == blobs_of(row)
        assert hexed(found.acpi) == events_of(row)


def kernel_name(row: dict[str, Any]) -> str:
    """Return an id for a row of `patched_kernel`."""
    return f"{Path(row['kernel']).name} {row['memory'] >> 30} GiB {row['cmdline']}"


@pytest.mark.slow
@needs_qemu
@needs_shared
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            id=kernel_name(row),
            marks=[pytest.mark.rig] * row["kernel"].startswith("package "),
        )
        for row in KERNELS
    ],
)
def test_read_kernel_equals_row(row: dict[str, Any], tmp_path: Path) -> None:
    """QEMU's own fw_cfg has the patched kernel of the row."""
    if installed_version().release > (10, 0):
        pytest.skip(f"QEMU {installed_version()} is installed; made with 10.0.13")
    kernel = tmp_path / "kernel"
    kernel.write_bytes(kernel_file(row))
    command = dstack_command(shape_of(memory_size=row["memory"]))
    command += ["-kernel", str(kernel), "-append", row["cmdline"]]
    if row["initrd_size"] is not None:
        (tmp_path / "initrd").write_bytes(bytes(row["initrd_size"]))
        command += ["-initrd", str(tmp_path / "initrd")]
    assert hashlib.sha256(read_kernel(command)).hexdigest() == row["patched_sha256"]
