"""Rows of the shared vectors of expected measurements, and the files that they name."""

from collections.abc import Callable
from typing import Any

import pytest

from attestkit.measure.firmware.tdx_firmware import BootOptionKind
from tests.measure.debian_packages import package_file
from tests.measure.kernel.debian_files import release_file
from tests.rigs.apt import MissingError
from tests.vectors import data, load

VECTORS: dict[str, Any] = load("measurement.json")
BOOT_OPTIONS: dict[str, BootOptionKind] = {
    "none": "none",
    "uiapp": "ui_app",
    "menu+setup": "menu_and_setup",
}
Row = dict[str, Any]


def rows(name: str, label: Callable[[Row], str] | None = None) -> list[Any]:
    """Return the parameters of a table; a row that needs a package of Debian is of the rig."""
    found: list[Row] = VECTORS.get(name, [])
    return [
        pytest.param(
            row,
            id=label(row) if label else str(number),
            marks=[pytest.mark.rig] if _package(row) else [],
        )
        for number, row in enumerate(found)
    ]


def firmware_row(row: Row) -> Row:
    """Return the row of the firmware that a row of another table names."""
    name = row["firmware"]
    table: list[Row] = VECTORS["firmware"]
    found = [other for other in table if name in {other.get("file"), _title(other)}]
    assert len(found) == 1, name
    return found[0]


def firmware_image(row: Row) -> bytes:
    """Return the image of a row of firmware; skip the test if Debian does not have it any more."""
    if "file" in row:
        return data(row["file"].removeprefix("data/"))
    try:
        return package_file(row["package"], row["suite"], row["path"], row["sha256"])
    except MissingError as error:
        pytest.skip(str(error))


def kernel_file(row: Row) -> bytes:
    """Return the kernel of a row: a stored file, or that of a package of Debian."""
    if not row["kernel"].startswith("package "):
        return data(row["kernel"].removeprefix("data/"))
    sha256: str = row["sha256"]
    (package,) = [other for other in VECTORS["authenticode"] if other["sha256"] == sha256]
    return release_file(package["package"], package["path"], sha256)


def _package(row: Row) -> bool:
    if "firmware" in row:
        return not row["firmware"].startswith("data/")
    return "package" in row


def _title(row: Row) -> str:
    return f"{row.get('package')} {row.get('version')}"
