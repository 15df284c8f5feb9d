"""ACPI tables with edge-triggered interrupts, as QEMU's TDX branches before 9.2 made them for TDs.

Those branches could not deliver level-triggered interrupts to a TD, so their tables declare all
legacy interrupts as edge-triggered. Apart from that the tables are those of the upstream release,
so they are derived from it; the result equals registers that hardware signed.
"""

import re
import struct
from typing import Final

from attestkit.errors import FormatError
from attestkit.measure.acpi.acpi_tables import TABLES_NAME, AcpiTables, check_tables
from attestkit.measure.acpi.loader_script import resize_table

# Extended interrupt descriptor (ACPI 6.4.3.6) of 1 or 3 level-triggered interrupts.
_LEVEL_TRIGGERED: Final = re.compile(rb"\x89(?:\x06\x00\x09(?=\x01)|\x0e\x00\x09(?=\x03))")
_EDGE: Final = b"\x0b"

_MADT_HEADER: Final = 44  # bytes before the first interrupt controller structure
_SOURCE_OVERRIDE: Final = 2  # type of an interrupt source override
_EDGE_HIGH: Final = 5  # its flags
_TIMER_GSI: Final = 2  # of IRQ 0


def to_edge_triggered(files: AcpiTables) -> AcpiTables:
    """Return the files with edge-triggered interrupts; files that have them are unchanged.

    The sizes of the files stay the same: the padding shrinks.

    Raises:
        FormatError: If the files are malformed, have no DSDT or MADT, or no padding is left.
    """
    check_tables(files)
    found = {table.signature: table for table in files.list_tables()}
    for signature in ("DSDT", "APIC"):
        if signature not in found:
            raise FormatError(f"{TABLES_NAME}: no {signature} table", reason="missing")
    dsdt, madt = found["DSDT"], found["APIC"]
    content = bytearray(files.tables)
    part = slice(dsdt.offset, dsdt.offset + dsdt.length)
    content[part] = _LEVEL_TRIGGERED.sub(lambda hit: hit[0][:-1] + _EDGE, content[part])
    old = bytes(content[madt.offset : madt.offset + madt.length])
    new = _override_all(old, madt.offset)
    return resize_table(files._replace(tables=bytes(content)), madt, new)


def _override_all(madt: bytes, offset: int) -> bytes:
    """Return a MADT whose first interrupt source override is replaced by 16, the others removed."""
    entries: list[bytes] = []
    place = None
    position = _MADT_HEADER
    while position < len(madt):
        length = madt[position + 1] if position + 1 < len(madt) else 0
        if length < 2 or position + length > len(madt):  # type and length
            message = f"{TABLES_NAME}: MADT: structure with length {length} does not fit"
            raise FormatError(message, reason="truncated", offset=offset + position)
        if madt[position] != _SOURCE_OVERRIDE:
            entries.append(madt[position : position + length])
        elif place is None:
            place = len(entries)
        position += length
    if place is None:
        message = f"{TABLES_NAME}: MADT: no interrupt source override"
        raise FormatError(message, reason="missing", offset=offset)
    overrides = [
        struct.pack("<BBBBIH", _SOURCE_OVERRIDE, 10, 0, irq, irq or _TIMER_GSI, _EDGE_HIGH)
        for irq in range(16)
    ]
    entries[place:place] = overrides
    body = b"".join(entries)
    length = _MADT_HEADER + len(body)
    return madt[:4] + length.to_bytes(4, "little") + madt[8:_MADT_HEADER] + body
