"""The SMBIOS table is published and measured as OVMF does."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError, UsageError
from attestkit.measure.firmware.bios_strings import BiosStrings
from attestkit.measure.rtmr0.smbios import filter_smbios, publish_smbios, set_processor_id
from tests.raising import raises
from tests.runner.cases import every_case

END = bytes.fromhex("7f04fffe0000")
QEMU_END = bytes.fromhex("7f047f7f0000")


def structure(kind: int, area: bytes, *strings: bytes) -> bytes:
    """Return a structure whose formatted area has `area` behind the header."""
    head = struct.pack("<BBH", kind, 4 + len(area), 0x100)
    return head + area + (b"".join(s + b"\0" for s in strings) or b"\0") + b"\0"


SYSTEM = structure(
    1, b"\1\2\3\4" + b"u" * 16 + b"\6\5\0", b"maker", b"model", b"1", b"serial", b"sku"
)


def test_published_table_has_bios_information() -> None:
    """OVMF adds its BIOS information unless QEMU has one, and its own end."""
    found = publish_smbios(SYSTEM + QEMU_END)
    assert found.startswith(
        SYSTEM + bytes.fromhex("001a0000010200e803000800000000000000001c0000ffff0000")
    )
    assert found.endswith(b"EDK II\0unknown\x0002/02/2022\0\0" + END)
    own = structure(0, bytes(20), b"vendor")
    assert publish_smbios(own + SYSTEM + QEMU_END) == own + SYSTEM + END
    assert publish_smbios(own) == own + END


@pytest.mark.parametrize(
    ("strings", "expected"),
    [
        (BiosStrings("Debian", "2026.08-2", "09/26/2026"), b"Debian\x002026.08-2\x0009/26/2026"),
        (BiosStrings("ab", "cd", "ef"), b"unknown\0unknown\x0002/02/2022"),
        (BiosStrings("abc", "", ""), b"abc\0unknown\x0002/02/2022"),
    ],
)
def test_published_table_has_strings_of_the_firmware(strings: BiosStrings, expected: bytes) -> None:
    """OVMF replaces strings under 3 characters."""
    assert publish_smbios(b"", strings).endswith(b"\0" + expected + b"\0\0" + END)


@pytest.mark.parametrize("text", ["x" * 65, "a\0bc", "fünf"])
def test_published_table_with_unsuitable_string_fails(text: str) -> None:
    """A string must be ASCII, which has no NUL, and up to 64 characters."""
    with raises(UsageError, "wrong_value"):
        publish_smbios(b"", BiosStrings(vendor=text))


@every_case(
    ("before", "after"),
    [
        (
            SYSTEM,
            structure(
                1, b"\1\2\3\0" + bytes(16) + b"\0\5\0", b"maker", b"model", b"1", b"      ", b"sku"
            ),
        ),
        (structure(1, b"\1\2\3\1", b"maker"), structure(1, b"\1\2\3\0", b"     ")),
        (structure(1, b"\1\2\3\7", b"maker"), structure(1, b"\1\2\3\0", b"maker")),
        (structure(1, b"\1\2\3"), structure(1, b"\1\2\3")),  # ends before the field
        (structure(3, b"\0\0\0\1\2", b"a", b"bc"), structure(3, b"\0\0\0\0\0", b" ", b"  ")),
        (
            structure(4, b"x" * 44),
            structure(
                4,
                b"x" * 13 + b"\0" + b"x" * 4 + b"\0\0" + b"x" * 8 + bytes(6) + b"x" * 4 + bytes(6),
            ),
        ),
        (structure(22, b"x" * 16), structure(22, b"xxx\0" + b"x" * 8 + bytes(4))),
        (structure(23, b"x" * 5), structure(23, b"xxx\0\0")),
        (structure(23, b"x" * 4), structure(23, b"xxxx")),
        (structure(27, b"x" * 10), structure(27, b"x" * 8 + bytes(2))),
        (structure(11, b"\2", b"a", b"b"), structure(11, b"\0", b"a", b"b")),
        (structure(200, b"vendor"), structure(200, bytes(6))),
        (structure(16, b"x" * 19), structure(16, b"x" * 19)),
    ],
)
def test_filtered_structure_has_no_values_of_one_machine(before: bytes, after: bytes) -> None:
    """Strings become spaces and their numbers 0, other fields zeros; twice is the same."""
    assert filter_smbios(before + END) == after + END
    assert filter_smbios(after + END) == after + END


def test_filtered_table_ends_with_type_127() -> None:
    """Data after the end of the table is not measured; an end is not required."""
    assert filter_smbios(SYSTEM + END + b"garbage") == filter_smbios(SYSTEM + END)
    assert filter_smbios(SYSTEM) + END == filter_smbios(SYSTEM + END)


def test_processor_id_is_replaced_in_each_processor() -> None:
    """All other structures stay the same, and a structure without the field too."""
    before = structure(4, b"xxxx" + b"y" * 8 + b"z", b"name") + structure(4, b"x" * 11) + SYSTEM
    after = structure(4, b"xxxx\xf8\x06\x08\0\xff\xfb\xa9\x1fz", b"name")
    after += structure(4, b"x" * 11) + SYSTEM
    assert set_processor_id(before + END, 0x806F8, 0x1FA9FBFF) == after + END
    for registers in ((-1, 0), (0, 1 << 32)):
        with raises(UsageError, "out_of_range"):
            set_processor_id(END, *registers)


@every_case(
    ("table", "reason", "offset"),
    [
        (b"\1\4\0", "truncated", 0),
        (b"\1\3\0\0\0\0", "wrong_size", 0),
        (b"\1\5\0\0", "wrong_size", 0),
        (b"\1\4\0\0\0", "truncated", 0),
        (b"\1\4\0\0text\0", "truncated", 0),
        (b"\1\4\0\0\0\0\1", "truncated", 6),
        (bytes((1 << 20) + 1), "too_large", 0),
    ],
)
def test_malformed_table_fails(table: bytes, reason: str, offset: int) -> None:
    """A structure must have its size and its strings."""
    for read in (filter_smbios, publish_smbios):
        with raises(FormatError, reason, offset=offset):
            read(table)


@given(st.binary(max_size=200))
def test_filter_of_any_table_returns_or_fails(table: bytes) -> None:
    """Any table is filtered to the same size, or refused."""
    try:
        found = filter_smbios(table)
    except FormatError:
        return
    assert found == filter_smbios(found)
    assert len(found) <= len(table)
