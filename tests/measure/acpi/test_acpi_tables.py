"""Tests of AcpiTables: list of tables, and checks of the three files."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.measure.acpi.acpi_tables import (
    MAX_LOADER,
    MAX_TABLES,
    AcpiTable,
    AcpiTables,
    check_tables,
)
from tests.raising import raises
from tests.runner.cases import every_case

RSDP = b"RSD PTR \0BOCHS \0" + bytes(4)
VALID = AcpiTables(bytes(128), RSDP, b"FACS\x40\0\0\0" + bytes(200))


def test_digests_are_in_order_of_measurement() -> None:
    """The digests are those of the whole files: loader script, RSDP, tables."""
    assert VALID.digests() == tuple(hashlib.sha384(part).digest() for part in VALID)


def test_list_tables_ends_at_padding() -> None:
    """Zeros after the last table are padding."""
    assert VALID.list_tables() == [AcpiTable("FACS", 0, 64)]


@every_case("length", [0, 7, 209, 0xFFFFFFFF])
def test_list_tables_rejects_length_that_does_not_fit(length: int) -> None:
    """A table must have a header and lie within the file."""
    files = VALID._replace(tables=b"FACS" + length.to_bytes(4, "little") + bytes(200))
    with raises(FormatError, "truncated", offset=0):
        files.list_tables()


def test_list_tables_rejects_too_many_tables() -> None:
    """There are at most 256 tables."""
    files = VALID._replace(tables=b"ABCD\x08\0\0\0" * 257)
    with raises(FormatError, "too_many"):
        files.list_tables()


@every_case(
    ("files", "reason"),
    [
        (VALID._replace(loader=b""), "missing"),
        (VALID._replace(loader=bytes(127)), "wrong_size"),
        (VALID._replace(loader=bytes(MAX_LOADER + 128)), "too_large"),
        (VALID._replace(rsdp=RSDP[:19]), "wrong_size"),
        (VALID._replace(rsdp=bytes(20)), "unrecognized"),
        (VALID._replace(tables=b""), "missing"),
        (VALID._replace(tables=bytes(MAX_TABLES + 1)), "too_large"),
    ],
)
def test_check_tables_rejects_invalid_file(files: AcpiTables, reason: str) -> None:
    """Each file has a valid size, and the RSDP its signature."""
    with raises(FormatError, reason):
        check_tables(files)


@given(st.binary(max_size=200))
def test_list_tables_of_any_bytes_is_list_or_format_error(content: bytes) -> None:
    """Malformed tables give a FormatError and nothing else."""
    try:
        tables = VALID._replace(tables=content).list_tables()
    except FormatError:
        return
    assert sum(table.length for table in tables) <= len(content)
