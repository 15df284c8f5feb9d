"""The loader script of ACPI tables: its commands, and their correction if a table's size changes.

The firmware follows the script to place the files, to turn offsets into addresses, and to compute
checksums (QEMU: hw/acpi/bios-linker-loader.c).
"""

import struct
from collections.abc import Sequence
from typing import Final

from attestkit.errors import FormatError
from attestkit.measure.acpi.acpi_tables import (
    COMMAND_SIZE,
    RSDP_NAME,
    TABLES_NAME,
    AcpiTable,
    AcpiTables,
    check_tables,
)

_FILE_NAME: Final = 56  # bytes in a command
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM, _WRITE_POINTER = 1, 2, 3, 4
_POINTER_SIZES: Final = (1, 2, 4, 8)

_LOADER_SIZE: Final = 4096
_SDT_HEADER: Final = 36
_CHECKSUM: Final = 9  # offset in each table
_FACP_POINTERS: Final = ((36, 4), (40, 4), (140, 8))  # to FACS and DSDT


def resize_table(files: AcpiTables, table: AcpiTable, content: bytes) -> AcpiTables:
    """Replace a table by one of another size, and correct all offsets after it.

    The sizes of the files stay the same: the padding shrinks or grows.

    Raises:
        FormatError: If the padding is too small, or the loader script is malformed or has pointers
            of devices.
    """
    end = table.offset + table.length
    growth = len(content) - table.length
    size = len(files.tables)
    if growth > 0 and any(files.tables[-growth:]):
        raise FormatError(f"{TABLES_NAME}: no room for {growth} bytes", reason="too_large")
    tables = bytearray(files.tables[: table.offset] + content + files.tables[end:])
    del tables[size:]
    tables.extend(bytes(size - len(tables)))
    moved = _MovedFiles(bytearray(files.loader), bytearray(files.rsdp), tables, end, growth)
    moved.follow_loader()
    return check_tables(AcpiTables(bytes(moved.loader), bytes(moved.rsdp), bytes(moved.tables)))


def build_loader(tables: Sequence[AcpiTable]) -> bytes:
    """Return the loader script that QEMU makes for these tables; FACS, DSDT and FACP come first."""
    places = {table.signature: table for table in tables}
    rsdt = places["RSDT"]
    commands = [
        struct.pack("<I56sIB", _ALLOCATE, RSDP_NAME.encode(), 16, 2),
        struct.pack("<I56sIB", _ALLOCATE, TABLES_NAME.encode(), 64, 1),
    ]
    for table in tables[1:]:  # a FACS has no checksum
        if table.signature == "FACP":
            commands += [_pointer(table.offset + at, size) for at, size in _FACP_POINTERS]
        if table == rsdt:
            pointers = range(rsdt.offset + _SDT_HEADER, rsdt.offset + rsdt.length, 4)
            commands += [_pointer(at, 4) for at in pointers]
        commands.append(
            _checksum(TABLES_NAME, table.offset, table.offset + _CHECKSUM, table.length)
        )
    commands.append(_pointer(16, 4, RSDP_NAME))
    commands.append(_checksum(RSDP_NAME, 0, 8, 20))
    script = b"".join(command.ljust(COMMAND_SIZE, b"\0") for command in commands)
    return script.ljust(_LOADER_SIZE, b"\0")


def _pointer(offset: int, size: int, name: str = TABLES_NAME) -> bytes:
    aim = TABLES_NAME.encode()
    return struct.pack("<I56s56sIB", _ADD_POINTER, name.encode(), aim, offset, size)


def _checksum(name: str, start: int, result: int, length: int) -> bytes:
    return struct.pack("<I56sIII", _ADD_CHECKSUM, name.encode(), result, start, length)


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
        content = {RSDP_NAME: self.rsdp, TABLES_NAME: self.tables}.get(place)
        if content is None and aim != TABLES_NAME:
            return
        if content is None or size not in _POINTER_SIZES or offset + size > len(content):
            message = f"etc/table-loader: pointer of {size} bytes outside of its file"
            raise FormatError(message, reason="wrong_value", offset=command)
        struct.pack_into("<I", self.loader, field, offset)
        if aim != TABLES_NAME:
            return
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
