"""The TDX metadata of a firmware image are read, and refused unless they can be measured."""

import struct
from random import Random

import pytest

from attestkit.backends.simulator.sample_image import guid_table
from attestkit.errors import FormatError
from attestkit.measure.firmware.tdvf import (
    BFV,
    CFV,
    MR_EXTEND,
    TD_HOB,
    TEMP_MEM,
    TdvfSection,
    find_section,
    read_tdvf_sections,
    section_data,
)
from tests.measure.firmware_images import (
    CFV_SIZE,
    SIZE,
    TDX_METADATA,
    code_volume,
    sections,
    variable_volume,
    with_metadata,
)
from tests.raising import raises
from tests.runner.cases import every_case

FLASH = (variable_volume(b"") + code_volume([])).ljust(SIZE, b"\xff")
IMAGE = with_metadata(FLASH, sections())
DESCRIPTOR = IMAGE.index(b"TDVF")


def changed(number: int, **fields: int) -> list[TdvfSection]:
    """Return the sections with other fields in one of them."""
    found = sections()
    found[number] = found[number]._replace(**fields)
    return found


def test_sections_are_read_in_order() -> None:
    """The order is that of the metadata, because MRTD depends on it."""
    found = read_tdvf_sections(IMAGE)
    assert list(found) == sections()
    assert section_data(IMAGE, found[1]) == variable_volume(b"")
    assert section_data(IMAGE, found[2]) == b""
    assert find_section(found, TD_HOB).end == 0x80B000


@every_case(
    ("described", "reason"),
    [
        (sections()[:1], "missing"),  # one section
        (sections()[1:], "missing"),  # without BFV
        ([s for s in sections() if s.kind != CFV], "missing"),
        ([s for s in sections() if s.kind != TD_HOB], "missing"),
        ([*sections(), TdvfSection(0, 0, 0x900000, 0x1000, TD_HOB, 0)], "duplicate"),
        (changed(0, address=(1 << 32) - SIZE + CFV_SIZE + 1), "wrong_value"),
        (changed(2, address=(1 << 64) - 0x1000), "wrong_value"),
        (changed(2, size=0x10001), "wrong_value"),
        (changed(2, size=0), "wrong_value"),
        (changed(2, size=1 << 63), "too_many"),
        (changed(2, kind=4), "unsupported"),
        (changed(2, kind=9), "unsupported"),
        (changed(0, attributes=2), "unsupported"),
        (changed(0, attributes=1 << 31), "unsupported"),
        (changed(0, data_size=SIZE - CFV_SIZE - 1), "wrong_size"),  # less than in memory
        (changed(0, data_size=SIZE), "wrong_size"),  # more than in memory
        (changed(0, data_size=0), "wrong_size"),
        (changed(2, data_size=0x10000), "wrong_size"),  # of memory without data
        (changed(0, data_offset=CFV_SIZE + 1), "inconsistent"),  # ends outside
        (changed(0, data_offset=CFV_SIZE - 1), "inconsistent"),  # ends before the end
        (changed(1, data_offset=0x10), "inconsistent"),  # not a volume of variables
        (changed(1, data_offset=CFV_SIZE), "inconsistent"),  # a volume of code
        (changed(2, address=0x80A000), "inconsistent"),  # overlaps the TD HOB
    ],
)
def test_sections_that_cannot_be_measured_fail(described: list[TdvfSection], reason: str) -> None:
    """Addresses, sizes, types and attributes are checked, and that the image is complete."""
    with raises(FormatError, reason):
        read_tdvf_sections(with_metadata(FLASH, described))


@every_case(
    ("at", "value", "reason", "offset"),
    [
        (0, b"TDVG", "unrecognized", 0),
        (4, b"\xd1\0\0\0", "wrong_size", 4),
        (8, b"\2\0\0\0", "unsupported_version", 8),
        (12, b"\7\0\0\0", "wrong_size", 4),
        (4, struct.pack("<III", 16 + 32 * 2048, 1, 2048), "truncated", None),
    ],
)
def test_descriptor_with_wrong_header_fails(
    at: int, value: bytes, reason: str, offset: int | None
) -> None:
    """Signature, size, version and count of the descriptor must match."""
    image = IMAGE[: DESCRIPTOR + at] + value + IMAGE[DESCRIPTOR + at + len(value) :]
    place = len(IMAGE) if offset is None else DESCRIPTOR + offset
    with raises(FormatError, reason, offset=place):
        read_tdvf_sections(image)


def test_descriptor_at_the_end_is_truncated() -> None:
    """A descriptor that starts in the last bytes of the image is truncated."""
    table = guid_table([(TDX_METADATA, struct.pack("<I", 8))])
    image = bytes(64) + table + bytes(32)
    with raises(FormatError, "truncated", offset=len(image)):
        read_tdvf_sections(image)


def test_image_without_tdx_metadata_is_not_recognized() -> None:
    """Firmware for other platforms has a GUID table without TDX metadata."""
    with raises(FormatError, "unrecognized"):
        read_tdvf_sections(bytes(64) + guid_table([]) + bytes(32))


def test_code_without_variables_fails() -> None:
    """The file with the code alone has offsets of the whole image, which do not fit."""
    with raises(FormatError, "inconsistent", part="OVMF.fd"):
        read_tdvf_sections(IMAGE[CFV_SIZE:])


def test_image_without_its_end_fails() -> None:
    """An image of which any part of the end is missing is refused."""
    for kept in (*range(0, 2048, 7), *range(0, SIZE, 4099)):
        with raises(FormatError, "unrecognized"):
            read_tdvf_sections(IMAGE[:kept])
            pytest.fail(f"the first {kept} bytes are read")


def test_image_without_its_start_fails() -> None:
    """An image of which any part of the start is missing is refused."""
    for kept in range(4099, SIZE, 4099):
        with raises(FormatError, "inconsistent"):
            read_tdvf_sections(IMAGE[-kept:])
            pytest.fail(f"the last {kept} bytes are read")


def test_changed_metadata_return_or_fail() -> None:
    """Any change of the metadata gives sections that keep the rules, or a FormatError."""
    random = Random(25)
    ranges = [range(DESCRIPTOR, DESCRIPTOR + 208), range(SIZE - 100, SIZE)]
    for _ in range(500):
        image = bytearray(IMAGE)
        for _ in range(random.randint(1, 3)):
            image[random.choice(random.choice(ranges))] = random.randrange(256)
        try:
            found = read_tdvf_sections(bytes(image))
        except FormatError:
            continue
        for section in found:
            assert section.kind in {BFV, CFV, TD_HOB, TEMP_MEM}
            assert section.attributes in {0, MR_EXTEND}
            assert section.data_offset + section.data_size <= SIZE
