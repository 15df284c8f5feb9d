"""ACPI tables from a folder, such as a copy of a guest's `/sys/firmware/qemu_fw_cfg/by_name`."""

import os
from pathlib import Path
from typing import Final

from attestkit._system.untrusted_files import read_regular
from attestkit.errors import UsageError
from attestkit.measure.acpi.acpi_tables import (
    LOADER_NAME,
    MAX_LOADER,
    MAX_RSDP,
    MAX_TABLES,
    RSDP_NAME,
    TABLES_NAME,
    AcpiTables,
    check_tables,
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
            raise UsageError(f"{path}: {error}", reason="cannot_read") from error
    message = f"{folder}: no file {' or '.join(names[1:])}"
    raise UsageError(message, reason="cannot_read")
