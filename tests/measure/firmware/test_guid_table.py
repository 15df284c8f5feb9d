"""The GUID table of a firmware image is read backwards, and its sizes are checked."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.simulator.sample_image import guid_table
from attestkit.errors import FormatError, UsageError
from attestkit.measure.firmware.guid_table import (
    MAX_IMAGE,
    TDX_METADATA,
    read_end_offset,
    read_guid_table,
)
from tests.measure.firmware_images import tdvf_image
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

ONE, OTHER = UUID(int=1), UUID(int=2)


def image_with(table: bytes) -> bytes:
    """Return an image that ends with a table and the reset vector."""
    return bytes(64) + table + bytes(32)


def test_guid_table_returns_entries_by_guid() -> None:
    """Entries may be empty, and end before the footer."""
    table = read_guid_table(image_with(guid_table([(ONE, b"data"), (OTHER, b"")])))
    assert table == {ONE: b"data", OTHER: b""}
    assert list(read_guid_table(tdvf_image())) == [TDX_METADATA]


def test_guid_table_prefers_last_entry() -> None:
    """Firmware and QEMU search from the end, and take the first that they find."""
    table = guid_table([(ONE, b"first"), (ONE, b"last")])
    assert read_guid_table(image_with(table)) == {ONE: b"last"}


@every_case("size", [0, 31, 49, 50, 128])
def test_guid_table_of_other_data_is_not_recognized(size: int) -> None:
    """Data without the footer, of any size, is not an image of OVMF."""
    with raises(FormatError, "unrecognized"):
        read_guid_table(bytes(size))


@every_case(
    ("before_footer", "size", "reason"),
    [
        (0, 17, "wrong_value"),  # of the table: under one entry
        (0, 0xFFFF, "wrong_value"),  # before the image
        (0, 30, "truncated"),  # inside of the entry
        (18, 17, "wrong_value"),  # of the entry: under size and GUID
        (18, 23, "wrong_value"),  # before the table
    ],
)
def test_guid_table_with_wrong_size_fails(before_footer: int, size: int, reason: str) -> None:
    """Sizes must be at least those of size and GUID, and stay inside of table and image."""
    data = bytearray(image_with(guid_table([(ONE, b"data")])))
    at = len(data) - 32 - 18 - before_footer
    data[at : at + 2] = size.to_bytes(2, "little")
    with raises(FormatError, reason) as caught:
        read_guid_table(bytes(data))
    assert caught.value.offset is not None


def test_guid_table_limits_the_image() -> None:
    """An image has at most 64 MiB, and is of type bytes."""
    with raises(FormatError, "too_large"):
        read_guid_table(bytes(MAX_IMAGE + 1))
    with raises(UsageError, "wrong_type"):
        read_guid_table(untyped(bytearray(128)))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [(b"\1\0\0", "wrong_size"), (bytes(4), "wrong_value"), (b"\x0b\0\0\0", "wrong_value")],
)
def test_end_offset_outside_of_the_image_fails(entry: bytes, reason: str) -> None:
    """The offset counts back from the end, and stays inside of the image."""
    with raises(FormatError, reason):
        read_end_offset(bytes(10), entry, "metadata")


def test_end_offset_counts_back() -> None:
    """The largest offset is the image's start."""
    assert read_end_offset(bytes(10), b"\x0a\0\0\0", "metadata") == 0
    assert read_end_offset(bytes(10), b"\1\0\0\0", "metadata") == 9


@given(st.binary(max_size=300), st.integers(0, 65_535))
def test_guid_table_of_any_data_returns_or_fails(data: bytes, size: int) -> None:
    """Any table before a correct footer gives entries or a FormatError."""
    footer = guid_table([])[2:]
    try:
        table = read_guid_table(data + size.to_bytes(2, "little") + footer + bytes(32))
    except FormatError:
        return
    assert sum(len(entry) + 18 for entry in table.values()) <= size - 18
