"""Boot options are read as the firmware makes them, and malformed ones are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.measure.rtmr0.boot_options import (
    encode_load_option,
    parse_boot_option,
    virtio_disk_option,
)
from tests.raising import raises

OPTION = virtio_disk_option(3)
DATA = 16  # bytes of optional data


def test_boot_option_of_a_disk() -> None:
    """Attributes, description, path and data are those that were encoded."""
    found = parse_boot_option(OPTION)
    assert (found.attributes, found.description) == (1, "UEFI Misc Device")
    assert found.device_path.endswith(bytes.fromhex("7fff0400"))
    assert len(found.data) == DATA
    assert encode_load_option(*found) == OPTION


def test_truncated_boot_option_fails() -> None:
    """Everything but the optional data must be complete."""
    for size in range(len(OPTION) - DATA):
        with raises(FormatError, "truncated"):
            parse_boot_option(OPTION[:size])
            pytest.fail(f"the first {size} bytes are read")


def test_wrong_boot_options_fail() -> None:
    """A description must be UTF-16 of at most 256 characters, the whole at most 64 KiB."""
    with raises(FormatError, "encoding", offset=6):
        parse_boot_option(b"\0\0\0\0\0\0" + b"\0\xdc" + b"\0\0")
    with raises(FormatError, "truncated", offset=6):
        parse_boot_option(encode_load_option(0, "x" * 256, b"")[:6] + b"x\0" * 257 + b"\0\0")
    assert parse_boot_option(encode_load_option(0, "x" * 256, b"")).description == "x" * 256
    with raises(FormatError, "too_large"):
        parse_boot_option(OPTION + bytes(1 << 16))


@given(st.binary(max_size=64))
def test_any_boot_option(option: bytes) -> None:
    """Any bytes are the option that was encoded, or malformed."""
    try:
        found = parse_boot_option(option)
    except FormatError:
        return
    assert encode_load_option(*found) == option
