"""Firmware images of Debian and made-up ones have the metadata and MRTD of the shared vectors."""

import base64
import hashlib
import zlib

import pytest

from attestkit.errors import FormatError
from attestkit.measure.firmware.tdvf import TdvfSection, compute_mrtds, read_tdvf_sections
from attestkit.measure.firmware.tdx_firmware import TdxFirmware
from tests.measure.rows import BOOT_OPTIONS, VECTORS, Row, firmware_image, rows
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

pytestmark = needs_shared

ERRORS = {
    "footer GUID": "unrecognized",
    "TDX descriptor signature": "unrecognized",
    "TDX descriptor version": "unsupported_version",
    "TDX section count": "wrong_size",
    "section address not page aligned": "wrong_value",
    "raw size over memory size": "wrong_size",
    "section type 9": "unsupported",
    "GUID table length over the image": "unrecognized",
}


@pytest.mark.parametrize("row", rows("firmware", lambda row: row.get("file") or row["package"]))
def test_firmware_row(row: Row) -> None:
    """Sections, MRTD in both orders, variables and layout are those of the row."""
    image = firmware_image(row)
    assert hashlib.sha256(image).hexdigest() == row["sha256"]
    found = TdxFirmware.parse(image)
    assert [list(section) for section in found.sections] == row["sections"]
    mrtds = compute_mrtds(image, found.sections)
    assert mrtds.single_pass.hex() == row["mrtd_single_pass"]
    assert mrtds.two_pass.hex() == row["mrtd_two_pass"]
    assert found.cfv_digest.hex() == row["cfv_sha384"]
    variables = [
        [str(vendor), name, len(value), hashlib.sha384(value).hexdigest()]
        for (vendor, name), value in found.variables.items()
    ]
    assert sorted(variables) == sorted(
        [vendor, name, size, digest] for vendor, name, size, digest in row["variables"]
    )
    layout = found.layout._asdict()
    assert layout.pop("acpi")
    volume, strings = layout.pop("ui_volume"), layout.pop("bios_strings")
    by_debian = "package" in row
    assert (strings and strings.vendor) == ("Debian distribution of EDK II" if by_debian else None)
    expected = dict(row["layout"])
    assert (str(volume) if volume else None) == expected.pop("ui_volume")
    assert layout == expected | {"boot_options": BOOT_OPTIONS[expected["boot_options"]]}


@every_case("row", rows("firmware_errors", lambda row: row["what"]))
def test_firmware_error_row(row: Row) -> None:
    """Each changed image is refused."""
    image = data(row["file"].removeprefix("data/"))
    at, value = row["offset"], bytes.fromhex(row["bytes"])
    with raises(FormatError, ERRORS[row["what"]]):
        read_tdvf_sections(image[:at] + value + image[at + len(value) :])


@pytest.mark.parametrize("row", rows("mrtd"))
def test_mrtd_row(row: Row) -> None:
    """The worked example has the same MRTD in both orders, because it has one page of code."""
    image = zlib.decompress(base64.b64decode(row["image_zlib"]))
    sections = [TdvfSection(*section) for section in row["sections"]]
    found = compute_mrtds(image, sections)
    assert found.single_pass.hex() == row["single_pass"]
    assert found.two_pass.hex() == row["two_pass"]


def test_rows_are_complete() -> None:
    """The tests above run all rows of these tables."""
    counts = {name: len(rows(name)) for name in ("firmware", "firmware_errors", "mrtd")}
    assert counts == {"firmware": 6, "firmware_errors": 8, "mrtd": 1}
    assert {row["what"] for row in VECTORS["firmware_errors"]} == ERRORS.keys()
