"""Whole guests are measured end to end (shared vectors)."""

import base64
import zlib

import pytest

from attestkit.measure import MachineShape, dstack_image, tdx
from attestkit.measure.acpi import find_tables
from attestkit.measure.expected import ExpectedMeasurements
from attestkit.measure.image_folder import DstackImage
from attestkit.measure.rtmr0.rtmr0_events import AcpiBlobs
from tests.measure.rows import VECTORS, Row, firmware_image, firmware_row, rows
from tests.vectors import SHARED, needs_shared

pytestmark = needs_shared


def boot_files(row: Row) -> tuple[bytes, bytes | None]:
    """Return kernel and initrd of a row."""
    initrd = None if row["initrd"] is None else (SHARED / row["initrd"]).read_bytes()
    return (SHARED / row["kernel"]).read_bytes(), initrd


def smbios_of(row: Row) -> bytes | None:
    """Return the SMBIOS table of a row, as measured."""
    found = row["smbios_measured"]
    return None if found is None else bytes.fromhex(found)


def tables_of(row: Row) -> AcpiBlobs:
    """Return the ACPI tables of a row."""
    found = row["qemu_blobs"]
    loader, tables = [zlib.decompress(base64.b64decode(found[n])) for n in ("loader", "tables")]
    return loader, bytes.fromhex(found["rsdp"]), tables


def check_row(found: ExpectedMeasurements, row: Row) -> None:
    """Compare all events and registers with a row."""
    events = [
        [event.register, event.name, event.digest.hex()] for event in found.events if event.digest
    ]
    assert events == row["events"]
    assert found.mrtd is not None
    assert found.mrtd.hex() == row["mrtd"]
    values = [value and value.hex() for value in found.rtmrs]
    assert values == [row["rtmr0"], row["rtmr1"], row["rtmr2"]]


@pytest.mark.parametrize("row", rows("guests", lambda row: row["name"]))
def test_guest_row(row: Row) -> None:
    """All values of a guest are those of the row, with the tables of the row."""
    kernel, initrd = boot_files(row)
    found = tdx(
        firmware=firmware_image(firmware_row(row)),
        kernel=kernel,
        initrd=initrd,
        cmdline=row["cmdline"],
        acpi=tables_of(row),
        smbios=smbios_of(row),
        **row["vm"],
    )
    check_row(found, row)
    assert found.not_proven == ("acpi_tables_given",)
    assert not found.other_events


@pytest.mark.parametrize("row", rows("guests", lambda row: row["name"]))
def test_guest_row_with_packaged_tables(row: Row) -> None:
    """The tables of the package give the same values, as far as they are of the row's QEMU."""
    kernel, initrd = boot_files(row)
    shape = MachineShape(**row["vm"])
    found = tdx(
        firmware=firmware_image(firmware_row(row)),
        kernel=kernel,
        initrd=initrd,
        cmdline=row["cmdline"],
        acpi=find_tables(shape),
        smbios=smbios_of(row),
        shape=shape,
    )
    # The rows have tables of QEMU 10.0, whatever version they name.
    if row["vm"]["qemu_version"].startswith("10."):
        check_row(found, row)
        assert found.not_proven == ()


def test_count() -> None:
    """All seven guests are there."""
    assert len(VECTORS["guests"]) == 7


@pytest.mark.parametrize("row", rows("guests", lambda row: row["name"])[3:6])
def test_dstack_image_row(row: Row) -> None:
    """A dstack image with the files of a row has the same values."""
    kernel, initrd = boot_files(row)
    assert initrd is not None
    image = DstackImage(
        os_image_hash=bytes(32),
        checksums=b"",
        version="0.5.5",
        is_dev=False,
        cmdline=row["cmdline"],
        kernel=kernel,
        initrd=initrd,
        firmware=firmware_image(firmware_row(row)),
        firmware_snp=None,
        ovmf_variant="",
        kernel_header_normalized=False,
        documents={},
    )
    found = dstack_image(image, row["vm"], smbios=smbios_of(row))
    check_row(found, row)
    assert found.os_image_hash == bytes(32)
    assert found.settings == {
        "qemu": row["vm"]["qemu_version"],
        "cpu_count": str(row["vm"]["cpu_count"]),
        "memory_size": str(row["vm"]["memory_size"]),
        "cmdline": row["cmdline"],
        "image": "0.5.5",
    }
