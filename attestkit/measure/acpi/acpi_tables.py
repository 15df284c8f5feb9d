"""ACPI tables in QEMU's three fw_cfg files: reading, checking, and change of a table's size.

`etc/acpi/tables` contains the tables without checksums, and pointers that are offsets within the
file; `etc/table-loader` is the script by which the firmware places and links them, and computes
checksums. OVMF measures each file as it is read, before it follows the script (QEMU:
hw/acpi/bios-linker-loader.c; edk2: OvmfPkg/AcpiPlatformDxe).
"""

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha384
from attestkit._system.untrusted_files import read_regular
from attestkit.errors import FormatError, UsageError

LOADER_NAME: Final = "etc/table-loader"
RSDP_NAME: Final = "etc/acpi/rsdp"
TABLES_NAME: Final = "etc/acpi/tables"

COMMAND_SIZE: Final = 128
"""Bytes of a command of the loader script."""

MAX_LOADER: Final = 1 << 16
MAX_RSDP: Final = 64
MAX_TABLES: Final = 1 << 21

_RSDP_SIZES: Final = (20, 36)  # ACPI 1.0, and 2.0 and later
_HEADER: Final = 8  # signature and length
_MAX_LIST: Final = 256  # tables


class AcpiTable(NamedTuple):
    """A table in `etc/acpi/tables`: signature, such as `DSDT`; offset and length in bytes."""

    signature: str
    offset: int
    length: int


class AcpiTables(NamedTuple):
    """Contents of the three files, with their padding, as QEMU returns them; see `check_tables`.

    Attributes:
        loader: `etc/table-loader`, the loader script.
        rsdp: `etc/acpi/rsdp`.
        tables: `etc/acpi/tables`.
    """

    loader: bytes
    rsdp: bytes
    tables: bytes

    def digests(self) -> tuple[bytes, bytes, bytes]:
        """Return the SHA-384, 48 bytes, of loader script, RSDP, tables, in the measured order."""
        return sha384(self.loader), sha384(self.rsdp), sha384(self.tables)

    def list_tables(self) -> list[AcpiTable]:
        """Return signature, offset and length of each table in `tables`, in order; without padding.

        Raises:
            FormatError: If a table has under 8 bytes or exceeds the file, or there are 256 or more.
        """
        return list(_iterate_tables(self.tables))


def check_tables(files: AcpiTables) -> AcpiTables:
    """Return `files` if their sizes and the RSDP's signature are valid.

    The loader script must have a multiple of 128 bytes and at most 64 KiB, the RSDP 20 or 36 bytes,
    the tables at most 2 MiB; none may be empty.

    Raises:
        FormatError: If a size or the signature is not valid.
    """
    _check_size(LOADER_NAME, files.loader, MAX_LOADER)
    if len(files.loader) % COMMAND_SIZE:
        message = f"{LOADER_NAME}: {len(files.loader)} bytes, not a multiple of {COMMAND_SIZE}"
        raise FormatError(message, reason="wrong_size")
    if len(files.rsdp) not in _RSDP_SIZES:
        message = f"{RSDP_NAME}: {len(files.rsdp)} bytes, must be 20 or 36"
        raise FormatError(message, reason="wrong_size")
    if not files.rsdp.startswith(b"RSD PTR "):
        raise FormatError(f"{RSDP_NAME}: no signature 'RSD PTR '", reason="unrecognized", offset=0)
    _check_size(TABLES_NAME, files.tables, MAX_TABLES)
    return files


def _check_size(name: str, content: bytes, most: int) -> None:
    if not content:
        raise FormatError(f"{name}: must not be empty", reason="missing")
    if len(content) > most:
        message = f"{name}: {len(content)} bytes exceed the limit of {most}"
        raise FormatError(message, reason="too_large")


def _iterate_tables(content: bytes) -> Iterator[AcpiTable]:
    offset = 0
    for _ in range(_MAX_LIST):
        head = content[offset : offset + _HEADER]
        if not head[:4].strip(b"\0"):  # the rest is padding
            return
        length = int.from_bytes(head[4:], "little")
        if len(head) < _HEADER or not _HEADER <= length <= len(content) - offset:
            message = f"{TABLES_NAME}: table of {length} bytes: under 8, or exceeds the file"
            raise FormatError(message, reason="truncated", offset=offset)
        yield AcpiTable(head[:4].decode("latin-1"), offset, length)
        offset += length
    raise FormatError(
        f"{TABLES_NAME}: has {_MAX_LIST} or more tables", reason="too_many", offset=offset
    )


# In sysfs, in a copy of it, and as other tools name the files.
_LOADER_FILES: Final = (
    *(f"{LOADER_NAME}/raw", LOADER_NAME, "table-loader", "table_loader"),
    *("table-loader.bin", "table_loader.bin"),
)
_RSDP_FILES: Final = (f"{RSDP_NAME}/raw", RSDP_NAME, "rsdp", "rsdp.bin")
_TABLES_FILES: Final = (
    *(f"{TABLES_NAME}/raw", TABLES_NAME, "tables", "acpi-tables", "acpi_tables"),
    *("tables.bin", "acpi-tables.bin", "acpi_tables.bin"),
)


def read_table_folder(folder: str | os.PathLike[str]) -> AcpiTables:
    """Read loader script, RSDP and tables from a folder that the user named.

    The files have the names of sysfs, `etc/table-loader/raw`, `etc/acpi/rsdp/raw` and
    `etc/acpi/tables/raw`, with or without `/raw`; or `table-loader`, `rsdp` and `tables`, with or
    without `.bin`.

    Raises:
        UsageError: If a file is missing or cannot be read.
        FormatError: As for `check_tables`.
    """
    place = Path(folder)
    return check_tables(
        AcpiTables(
            _read(place, _LOADER_FILES, MAX_LOADER),
            _read(place, _RSDP_FILES, MAX_RSDP),
            _read(place, _TABLES_FILES, MAX_TABLES),
        )
    )


def _read(folder: Path, names: tuple[str, ...], most: int) -> bytes:
    for name in names:
        path = folder / name
        try:
            if not path.is_file():
                continue
            return read_regular(path, most + 1, follow=True)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read: {error}", reason="cannot_read") from error
    raise UsageError(f"{folder}: must contain {' or '.join(names[1:])}", reason="cannot_read")


_FILE_NAME: Final = 56  # bytes in a command
_ALLOCATE, _ADD_POINTER, _ADD_CHECKSUM, _WRITE_POINTER = 1, 2, 3, 4
_POINTER_SIZES: Final = (1, 2, 4, 8)

_LOADER_SIZE: Final = 4096
_SDT_HEADER: Final = 36
_CHECKSUM: Final = 9  # offset in each table
_FACP_POINTERS: Final = ((36, 4), (40, 4), (140, 8))  # to FACS and DSDT


def resize_table(files: AcpiTables, table: AcpiTable, content: bytes) -> AcpiTables:
    """Return the files with `content` in place of `table`, and with corrected offsets after it.

    The sizes of the files stay the same: the padding shrinks or grows.

    Args:
        files: The three files.
        table: A table of `files.list_tables()`.
        content: The new table with its header, of any length.

    Raises:
        FormatError: If the padding is too small, or the loader script is malformed or writes
            addresses of tables to a device.
    """
    end = table.offset + table.length
    growth = len(content) - table.length
    size = len(files.tables)
    if growth > 0 and any(files.tables[-growth:]):
        raise FormatError(f"{TABLES_NAME}: must end in {growth} zero bytes", reason="too_large")
    tables = bytearray(files.tables[: table.offset] + content + files.tables[end:])
    del tables[size:]
    tables.extend(bytes(size - len(tables)))
    moved = _MovedFiles(bytearray(files.loader), bytearray(files.rsdp), tables, end, growth)
    moved.follow_loader()
    return check_tables(AcpiTables(bytes(moved.loader), bytes(moved.rsdp), bytes(moved.tables)))


def build_loader(tables: Sequence[AcpiTable]) -> bytes:
    """Return the loader script that QEMU makes for these tables, zero-padded to 4096 bytes.

    `tables` are in the order of `etc/acpi/tables`: FACS, DSDT, FACP, then others with an RSDT.
    """
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
    """The three files while a table is resized; its methods correct offsets.

    All of `tables` from offset `start` on has moved by `growth` bytes.
    """

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
                message = "etc/table-loader: must not write the address of a table to a device"
                raise FormatError(message, reason="unsupported", offset=offset)

    def _moved(self, position: int) -> int:
        return position + self._growth if position >= self._start else position

    def _name(self, offset: int) -> str:
        return bytes(self.loader[offset : offset + _FILE_NAME]).rstrip(b"\0").decode("latin-1")

    def _move_pointer(self, command: int) -> None:
        """Correct the pointer that an ADD_POINTER command of the loader script names.

        `command` is the offset of the command in the script, in bytes.
        """
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
            message = f"etc/table-loader: pointer of {size} bytes at {offset:#x}: not in its file"
            raise FormatError(message, reason="wrong_value", offset=command)
        struct.pack_into("<I", self.loader, field, offset)
        if aim != TABLES_NAME:
            return
        value = self._moved(int.from_bytes(content[offset : offset + size], "little"))
        if value >= 1 << 8 * size:
            message = f"etc/table-loader: pointer of {size} bytes is too small for its new value"
            raise FormatError(message, reason="wrong_value", offset=command)
        content[offset : offset + size] = value.to_bytes(size, "little")

    def _move_checksum(self, field: int) -> None:
        """Correct the offsets in an ADD_CHECKSUM command of the loader script.

        `field` is the offset of these numbers in the script, in bytes.
        """
        result, start, length = struct.unpack_from("<III", self.loader, field)
        if start < self._start <= start + length:
            length += self._growth
        values = (self._moved(result), self._moved(start), length)
        if min(values) < 0 or max(values) >= 1 << 32:
            message = f"etc/table-loader: offsets of a checksum must be 32 bits, not {values}"
            raise FormatError(message, reason="wrong_value", offset=field)
        struct.pack_into("<III", self.loader, field, *values)
