"""ACPI tables with edge-triggered interrupts, as QEMU's TDX branches before 9.2 made them for TDs.

Those branches could not deliver level-triggered interrupts to a TD, so their tables declare all
legacy interrupts as edge-triggered. Apart from that the tables are those of the upstream release,
so they are derived from it (spec/measurement.md 4.6 in the project's notes; equal to registers that
hardware signed).
"""

import re
import struct
from typing import Final

from attestkit.errors import FormatError
from attestkit.measure.acpi.acpi_tables import (
    COMMAND_SIZE,
    RSDP_NAME,
    TABLES_NAME,
    AcpiTables,
    check_tables,
)

# Extended interrupt descriptor (ACPI 6.4.3.6) of 1 or 3 level-triggered interrupts.
_LEVEL_TRIGGERED: Final = re.compile(rb"\x89(?:\x06\x00\x09(?=\x01)|\x0e\x00\x09(?=\x03))")
_EDGE: Final = b"\x0b"

_MADT_HEADER: Final = 44  # bytes before the first interrupt controller structure
_SOURCE_OVERRIDE: Final = 2  # type of an interrupt source override
_EDGE_HIGH: Final = 5  # its flags
_TIMER_GSI: Final = 2  # of IRQ 0

_FILE_NAME: Final = 56  # bytes in a loader command
_ADD_POINTER, _ADD_CHECKSUM, _WRITE_POINTER = 2, 3, 4
_POINTER_SIZES: Final = (1, 2, 4, 8)


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
    end = madt.offset + madt.length
    new_madt = _override_all(bytes(content[madt.offset : end]), madt.offset)
    growth = len(new_madt) - madt.length
    if growth > 0 and any(content[-growth:]):
        raise FormatError(f"{TABLES_NAME}: no room for {growth} bytes", reason="too_large")
    grown = content[: madt.offset] + new_madt + content[end:]
    del grown[len(content) :]
    grown.extend(bytes(len(content) - len(grown)))
    moved = _MovedFiles(bytearray(files.loader), bytearray(files.rsdp), grown, end, growth)
    moved.follow_loader()
    return check_tables(AcpiTables(bytes(moved.loader), bytes(moved.rsdp), bytes(moved.tables)))


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


class _MovedFiles:
    """Files in whose tables everything from an old offset on has moved by `growth` bytes."""

    def __init__(
        self, loader: bytearray, rsdp: bytearray, tables: bytearray, start: int, growth: int
    ) -> None:
        self.loader = loader
        self.rsdp = rsdp
        self.tables = tables
        self._start = start  # in the tables before they grew
        self._growth = growth

    def follow_loader(self) -> None:
        """Correct the commands of the loader script, and the pointers that they name."""
        for offset in range(0, len(self.loader), COMMAND_SIZE):
            command = int.from_bytes(self.loader[offset : offset + 4], "little")
            if command == _ADD_POINTER:
                self._move_pointer(offset)
            elif command == _ADD_CHECKSUM and self._name(offset + 4) == TABLES_NAME:
                self._move_checksum(offset + 4 + _FILE_NAME)
            elif command == _WRITE_POINTER and self._name(offset + 4 + _FILE_NAME) == TABLES_NAME:
                message = "etc/table-loader: a device has a pointer into the tables"
                raise FormatError(message, reason="unsupported", offset=offset)

    def _moved(self, position: int) -> int:
        return position + self._growth if position >= self._start else position

    def _name(self, offset: int) -> str:
        return bytes(self.loader[offset : offset + _FILE_NAME]).rstrip(b"\0").decode("latin-1")

    def _move_pointer(self, command: int) -> None:
        """Correct a pointer: file that has it, file that it points to, offset, size."""
        place, aim = self._name(command + 4), self._name(command + 4 + _FILE_NAME)
        field = command + 4 + 2 * _FILE_NAME
        (offset,) = struct.unpack_from("<I", self.loader, field)
        size = self.loader[field + 4]
        if place == TABLES_NAME:
            offset = self._moved(offset)
            struct.pack_into("<I", self.loader, field, offset)
        if aim != TABLES_NAME:
            return
        content = {RSDP_NAME: self.rsdp, TABLES_NAME: self.tables}.get(place)
        if content is None or size not in _POINTER_SIZES or offset + size > len(content):
            message = f"etc/table-loader: pointer of {size} bytes outside of its file"
            raise FormatError(message, reason="wrong_value", offset=command)
        value = self._moved(int.from_bytes(content[offset : offset + size], "little"))
        if value >= 1 << 8 * size:
            message = "etc/table-loader: pointer does not fit after the move"
            raise FormatError(message, reason="wrong_value", offset=command)
        content[offset : offset + size] = value.to_bytes(size, "little")

    def _move_checksum(self, field: int) -> None:
        """Correct a checksum: offset of the result, start and length of the bytes it covers."""
        result, start, length = struct.unpack_from("<III", self.loader, field)
        if start < self._start <= start + length:
            length += self._growth
        values = (self._moved(result), self._moved(start), length)
        if min(values) < 0 or max(values) >= 1 << 32:
            message = "etc/table-loader: checksum outside of its file"
            raise FormatError(message, reason="wrong_value", offset=field)
        struct.pack_into("<III", self.loader, field, *values)
