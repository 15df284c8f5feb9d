"""The three fw_cfg files in which QEMU passes ACPI tables to the firmware.

`etc/acpi/tables` contains the tables without checksums, and pointers that are offsets within the
file; `etc/table-loader` is the script by which the firmware places and links them. OVMF measures
each file as it is read, before it follows the script (QEMU: hw/acpi/bios-linker-loader.c; edk2:
OvmfPkg/AcpiPlatformDxe).
"""

import os
from collections.abc import Iterator
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
    """Position of a table in `etc/acpi/tables`."""

    signature: str
    offset: int
    length: int


class AcpiTables(NamedTuple):
    """The three files, whole, as QEMU returns them; see `check_tables`."""

    loader: bytes
    rsdp: bytes
    tables: bytes

    def digests(self) -> tuple[bytes, bytes, bytes]:
        """Return the SHA-384 of loader script, RSDP and tables, in the order of measurement."""
        return sha384(self.loader), sha384(self.rsdp), sha384(self.tables)

    def list_tables(self) -> list[AcpiTable]:
        """Return the tables in `tables`, in order.

        Raises:
            FormatError: If a table does not lie within the file, or there are over 256.
        """
        return list(_iterate_tables(self.tables))


def check_tables(files: AcpiTables) -> AcpiTables:
    """Return `files` if the sizes and the RSDP's signature are valid.

    The loader script has a multiple of 128 bytes and at most 64 KiB, the RSDP 20 or 36 bytes, the
    tables at most 2 MiB.

    Raises:
        FormatError: If they are not.
    """
    _check_size(LOADER_NAME, files.loader, MAX_LOADER)
    if len(files.loader) % COMMAND_SIZE:
        message = f"{LOADER_NAME}: {len(files.loader)} bytes, not a multiple of {COMMAND_SIZE}"
        raise FormatError(message, reason="wrong_size")
    if len(files.rsdp) not in _RSDP_SIZES:
        message = f"{RSDP_NAME}: {len(files.rsdp)} bytes, must be 20 or 36"
        raise FormatError(message, reason="wrong_size")
    if not files.rsdp.startswith(b"RSD PTR "):
        raise FormatError(f"{RSDP_NAME}: not an RSDP", reason="unrecognized", offset=0)
    _check_size(TABLES_NAME, files.tables, MAX_TABLES)
    return files


def _check_size(name: str, content: bytes, most: int) -> None:
    if not content:
        raise FormatError(f"{name}: empty", reason="missing")
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
            message = f"{TABLES_NAME}: table with length {length} does not fit"
            raise FormatError(message, reason="truncated", offset=offset)
        yield AcpiTable(head[:4].decode("latin-1"), offset, length)
        offset += length
    raise FormatError(f"{TABLES_NAME}: over {_MAX_LIST} tables", reason="too_many", offset=offset)


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
            raise UsageError(f"{path}: {error}", reason="cannot_read") from error
    message = f"{folder}: no file {' or '.join(names[1:])}"
    raise UsageError(message, reason="cannot_read")
