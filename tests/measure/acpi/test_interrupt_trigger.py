"""Tests of the edge-triggered form of ACPI tables."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.measure.acpi.acpi_tables import AcpiTables, check_tables
from attestkit.measure.acpi.derived_tables import to_edge_triggered
from attestkit.measure.acpi.packaged_tables import packaged_entries
from tests.raising import raises
from tests.runner.cases import every_case

ENTRIES = [entry.files for entry in packaged_entries("8.2")]
FILES = ENTRIES[0]
POINTER, CHECKSUM = 2, 3


def find(files: AcpiTables, signature: str) -> tuple[int, int]:
    """Return offset and length of a table."""
    return next((at, size) for name, at, size in files.list_tables() if name == signature)


def changed(tables: bytes, at: int, new: bytes) -> AcpiTables:
    """Return the files with other bytes in the tables."""
    return FILES._replace(tables=tables[:at] + new + tables[at + len(new) :])


def link(files: AcpiTables) -> AcpiTables:
    """Run the loader script with the tables at address 0, as the firmware does: checksums."""
    contents = {
        b"etc/acpi/tables": bytearray(files.tables),
        b"etc/acpi/rsdp": bytearray(files.rsdp),
    }
    for at in range(0, len(files.loader), 128):
        if int.from_bytes(files.loader[at : at + 4], "little") == CHECKSUM:
            name = files.loader[at + 4 : at + 60].rstrip(b"\0")
            result, start, length = struct.unpack_from("<III", files.loader, at + 60)
            part = contents[name]
            part[result] = -sum(part[start : start + length]) & 0xFF
    return AcpiTables(
        files.loader, bytes(contents[b"etc/acpi/rsdp"]), bytes(contents[b"etc/acpi/tables"])
    )


@pytest.mark.parametrize("files", ENTRIES)
def test_to_edge_triggered_gives_tables_with_valid_checksums(files: AcpiTables) -> None:
    """After the move the loader script still covers each table exactly."""
    linked = link(to_edge_triggered(files))
    for signature, at, size in linked.list_tables()[1:]:  # a FACS has no checksum
        assert sum(linked.tables[at : at + size]) & 0xFF == 0, signature
    rsdt, _ = find(linked, "RSDT")
    assert int.from_bytes(linked.rsdp[16:20], "little") == rsdt


@pytest.mark.parametrize("files", ENTRIES)
def test_to_edge_triggered_overrides_all_legacy_interrupts(files: AcpiTables) -> None:
    """The MADT grows by 110 bytes and overrides 16 interrupts; all sizes stay the same."""
    edge = to_edge_triggered(files)
    assert [len(part) for part in edge] == [len(part) for part in files]
    at, size = find(edge, "APIC")
    assert size == find(files, "APIC")[1] + 110
    madt = edge.tables[at : at + size]
    for irq in range(16):
        assert struct.pack("<BBBBIH", 2, 10, 0, irq, irq or 2, 5) in madt


@pytest.mark.parametrize("files", ENTRIES)
def test_to_edge_triggered_twice_changes_nothing(files: AcpiTables) -> None:
    """Tables that are edge-triggered already are returned unchanged."""
    edge = to_edge_triggered(files)
    assert to_edge_triggered(edge) == edge != files


@pytest.mark.parametrize("signature", ["DSDT", "APIC"])
def test_to_edge_triggered_rejects_missing_table(signature: str) -> None:
    """A DSDT and a MADT are required."""
    with raises(FormatError, "missing"):
        to_edge_triggered(changed(FILES.tables, find(FILES, signature)[0], b"XXXX"))


def test_to_edge_triggered_rejects_madt_without_overrides() -> None:
    """QEMU's MADT always has interrupt source overrides."""
    at, size = find(FILES, "APIC")
    body = bytes(FILES.tables[at + 44 : at + size]).replace(b"\x02\x0a\x00", b"\x0f\x0a\x00")
    with raises(FormatError, "missing", offset=at):
        to_edge_triggered(changed(FILES.tables, at + 44, body))


@pytest.mark.parametrize("length", [0, 1, 255])
def test_to_edge_triggered_rejects_structure_outside_of_madt(length: int) -> None:
    """The error names the offset of a structure that does not fit."""
    at, _ = find(FILES, "APIC")
    with raises(FormatError, "truncated", offset=at + 44):
        to_edge_triggered(changed(FILES.tables, at + 45, bytes([length])))


def test_to_edge_triggered_rejects_tables_without_padding() -> None:
    """Tables that fill their file cannot grow."""
    end = len(FILES.tables.rstrip(b"\0"))
    with raises(FormatError, "too_large"):
        to_edge_triggered(FILES._replace(tables=FILES.tables[: end + 100]))


@every_case("place", [len(FILES.tables), 0xFFFFFFFF])
@every_case("aim", [b"etc/acpi/tables", b"etc/other"])
def test_to_edge_triggered_rejects_pointer_outside_of_its_file(place: int, aim: bytes) -> None:
    """A pointer of the loader script must lie within its file, whatever it points to."""
    loader = bytearray(FILES.loader)
    at = next(at for at in range(0, len(loader), 128) if loader[at] == POINTER)
    struct.pack_into("<56sI", loader, at + 60, aim, place)
    with raises(FormatError, "wrong_value", offset=at):
        to_edge_triggered(FILES._replace(loader=bytes(loader)))


@given(st.integers(0, len(FILES.tables.rstrip(b"\0")) - 1), st.integers(0, 255))
def test_to_edge_triggered_of_changed_tables_is_tables_or_format_error(at: int, new: int) -> None:
    """Malformed tables give a FormatError and nothing else."""
    try:
        result = to_edge_triggered(changed(FILES.tables, at, bytes([new])))
    except FormatError:
        return
    assert check_tables(result)


@given(st.integers(0, len(FILES.loader.rstrip(b"\0")) - 1), st.integers(0, 255))
def test_to_edge_triggered_with_changed_loader_is_tables_or_format_error(at: int, new: int) -> None:
    """A malformed loader script gives a FormatError and nothing else."""
    loader = FILES.loader[:at] + bytes([new]) + FILES.loader[at + 1 :]
    try:
        result = to_edge_triggered(FILES._replace(loader=loader))
    except FormatError:
        return
    assert check_tables(result)
