"""SEV metadata of firmware images."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.measure.sev_snp.sev_metadata import read_sev_metadata
from tests.measure.sev_snp.images import GUIDS, SECTIONS, sev_image
from tests.runner.cases import every_case


def test_metadata_is_read() -> None:
    """Sections, addresses and entry point are those in the image."""
    found = read_sev_metadata(sev_image(svsm_entry=0x10))
    assert found.sections == SECTIONS
    assert (found.reset_eip, found.hashes_table_gpa) == (0x80B004, 0x810C00)
    assert found.svsm_entry == 0x10


def test_missing_entries_are_none() -> None:
    """Addresses are optional, and an address of 0 means none."""
    found = read_sev_metadata(sev_image(reset_eip=None, hashes_gpa=0))
    assert (found.reset_eip, found.hashes_table_gpa, found.svsm_entry) == (None, None, None)


@every_case(
    ("at", "value", "reason"),
    [
        (0, b"ASEX", "unrecognized"),
        (8, b"\2", "unsupported_version"),
        (12, b"\x41", "too_many"),
        (16 + 8, b"\x05", "unsupported"),
        (16, b"\x01", "wrong_value"),
        (16 + 4, b"\xff\xff\xff\xff", "too_large"),
    ],
)
def test_damaged_metadata_is_refused(at: int, value: bytes, reason: str) -> None:
    """A field outside of its range is refused, with an offset in the image."""
    image = bytearray(sev_image())
    start = image.index(b"ASEV")
    image[start + at : start + at + len(value)] = value
    with pytest.raises(FormatError) as caught:
        read_sev_metadata(bytes(image))
    assert caught.value.reason == reason
    assert caught.value.offset is not None
    assert caught.value.offset <= len(image)


def test_image_without_sev_metadata_is_refused() -> None:
    """A firmware for other guests is not recognized."""
    image = sev_image().replace(GUIDS["metadata"].bytes_le, bytes(16))
    with pytest.raises(FormatError) as caught:
        read_sev_metadata(image)
    assert caught.value.reason == "unrecognized"


def test_short_entry_is_refused() -> None:
    """An address has four bytes."""
    with pytest.raises(FormatError) as caught:
        read_sev_metadata(sev_image(more={GUIDS["svsm"]: b"\1\2"}))
    assert caught.value.reason == "wrong_size"


@pytest.mark.parametrize("offset", [0, 8, 1 << 31])
def test_metadata_outside_of_the_image_is_refused(offset: int) -> None:
    """The offset of the metadata is counted back from the end of the image."""
    image = sev_image()
    at = image.index(GUIDS["metadata"].bytes_le) - 6
    image = image[:at] + struct.pack("<I", offset) + image[at + 4 :]
    with pytest.raises(FormatError):
        read_sev_metadata(image)


@given(st.lists(st.tuples(st.integers(-400, -1), st.integers(0, 255)), max_size=5))
def test_changed_image_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    """Any change at the end of the image is read, or refused by FormatError."""
    image = bytearray(sev_image())
    for at, value in changes:
        image[at] = value
    try:
        found = read_sev_metadata(bytes(image))
    except FormatError:
        return
    assert sum(section.pages for section in found.sections) <= 65_536
