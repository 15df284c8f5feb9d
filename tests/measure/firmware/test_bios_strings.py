"""Strings of a firmware's build are read from its SMBIOS driver, or called unknown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.simulator.sample_image import FFS2, ffs_file, volume
from attestkit.errors import UsageError
from attestkit.measure.firmware.bios_strings import (
    SMBIOS_PLATFORM,
    BiosStrings,
    find_bios_strings,
)
from attestkit.measure.firmware.firmware_volumes import read_contents
from tests.measure.firmware_images import (
    UI_VOLUME,
    bios_driver,
    section,
)
from tests.runner.cases import every_case

BUILD = BiosStrings("Some distribution of EDK II", "2026.08-2", "09/26/2026")


@every_case(
    ("texts", "expected"),
    [
        ((BUILD.date, BUILD.version, BUILD.vendor), BUILD),
        (("EDK II",), BiosStrings()),
        (("", "", "EDK II"), BiosStrings()),
        ((BUILD.date, "EDK II"), BiosStrings(date=BUILD.date)),
        ((BUILD.version, "EDK II"), BiosStrings(version=BUILD.version)),
        ((), None),
        ((BUILD.date,), None),
        ((BUILD.version, BUILD.vendor, BUILD.date), None),
        ((BUILD.date, BUILD.version, BUILD.vendor, "more"), None),
        ((BUILD.date, BUILD.version, "x" * 65), None),
    ],
)
def test_strings_of_driver(texts: tuple[str, ...], expected: BiosStrings | None) -> None:
    """Date, version and vendor follow the structure; another number or order is unknown."""
    assert find_bios_strings(bios_driver(*texts)) == expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("02/02/2022".encode("utf-16-le"), "02/06/2015".encode("utf-16-le")),
        (bytes.fromhex("001a000001"), bytes.fromhex("001a000002")),
        (b"\x10MZ", b"\x12MZ"),
    ],
    ids=["release", "structure", "section"],
)
def test_strings_of_other_driver_are_unknown(old: bytes, new: bytes) -> None:
    """Other defaults, another structure or type of program is another driver."""
    driver = bios_driver(BUILD.date, BUILD.version, BUILD.vendor)
    assert old in driver
    assert find_bios_strings(driver.replace(old, new)) is None
    assert find_bios_strings(driver + driver) == BUILD, "the first program"


@given(st.binary(max_size=200), st.integers(0, 2000))
def test_strings_of_any_driver(tail: bytes, cut: int) -> None:
    """Other or truncated data is unknown, and never an error."""
    driver = bios_driver(BUILD.date, BUILD.version, BUILD.vendor)
    find_bios_strings(tail)
    assert find_bios_strings(driver[:cut]) in {None, BUILD}


def test_contents_have_the_wanted_file_once() -> None:
    """The file is copied whole; a repeated or large one is not."""
    driver = bios_driver(BUILD.date, BUILD.version, BUILD.vendor)
    file, size = ffs_file(SMBIOS_PLATFORM, 7, driver), 0x1000
    for nested in (file, ffs_file(UI_VOLUME, 7, section(0x17, volume(FFS2, 0x800, file)))):
        image = volume(FFS2, size, nested)
        found = read_contents(image, [], SMBIOS_PLATFORM).driver
        assert found is not None
        assert found.startswith(driver)
        assert read_contents(image, [], UI_VOLUME).driver != found
        assert read_contents(image + image, [], SMBIOS_PLATFORM).driver is None
        assert read_contents(image * 3, [], SMBIOS_PLATFORM).driver is None
    large = ffs_file(SMBIOS_PLATFORM, 7, section(0x19, bytes(256 << 10)))
    assert read_contents(volume(FFS2, 0x42000, large), [], SMBIOS_PLATFORM).driver is None


def test_published_strings_are_limited() -> None:
    """The table has strings of up to 64 ASCII characters."""
    with pytest.raises(UsageError):
        BiosStrings("x" * 65).published()
