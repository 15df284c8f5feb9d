"""Opaque data: round trips, required fields, and the values that each field allows."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError, UsageError
from attestkit.gpu.device.opaque_data import (
    encode_opaque_data,
    read_opaque_data,
    split_opaque_data,
)
from tests.gpu.made_devices import GPU_FIELDS, SWITCH_FIELDS
from tests.raising import raises
from tests.runner.cases import every_case

KNOWN = {*range(1, 28), *range(32, 37)}
GPU = tuple(GPU_FIELDS.items())
SWITCH = tuple(SWITCH_FIELDS.items())

field_types = st.integers(0, 0xFFFF).filter(lambda kind: kind != 255)
fields = st.lists(
    st.tuples(field_types, st.binary(max_size=40)),
    max_size=64,
    unique_by=lambda field: (field[0] in KNOWN and field[0], field[0] in KNOWN or field),
)


def gpu_with(kind: int, value: bytes) -> tuple[tuple[int, bytes], ...]:
    """Return the fields of a GPU with another value of one."""
    return tuple({**GPU_FIELDS, kind: value}.items())


@given(fields)
def test_encoded_fields_are_split_to_the_same(found: list[tuple[int, bytes]]) -> None:
    """Fields of any types and values, known ones once, survive encoding in their order."""
    assert split_opaque_data(encode_opaque_data(found)) == tuple(found)


@given(st.binary(max_size=300))
def test_split_of_any_bytes_restores_them(raw: bytes) -> None:
    """Bytes are refused, or the fields encode to the same bytes."""
    with suppress(FormatError):
        assert encode_opaque_data(split_opaque_data(raw)) == raw


def test_split_of_every_prefix_is_refused_or_whole() -> None:
    """Data that end inside a field are refused at the offset of the field."""
    raw = encode_opaque_data(GPU)
    starts = [len(encode_opaque_data(GPU[:at])) for at in range(len(GPU) + 1)]
    for size in range(len(raw) + 1):
        if size in starts:
            assert split_opaque_data(raw[:size]) == GPU[: starts.index(size)]
            continue
        offset = 1000 + max(start for start in starts if start < size)
        with raises(FormatError, "truncated", offset=offset):
            split_opaque_data(raw[:size], 1000)


def test_split_of_repeated_field_is_refused_if_known() -> None:
    """A known field occurs once; unknown ones are kept as often as they occur."""
    for kind in range(1, 60):
        raw = encode_opaque_data([(kind, b"a"), (kind, b"b")])
        if kind in KNOWN:
            with raises(FormatError, "duplicate", offset=5):
                split_opaque_data(raw)
        else:
            assert split_opaque_data(raw) == ((kind, b"a"), (kind, b"b"))


def test_split_of_invalid_type_and_too_many_fields_is_refused() -> None:
    """Type 255 is invalid, and there are at most 64 fields."""
    with raises(FormatError, "wrong_value", offset=4):
        split_opaque_data(encode_opaque_data([(100, b""), (255, b"")]))
    assert len(split_opaque_data(encode_opaque_data([(100, b"")] * 64))) == 64
    with raises(FormatError, "too_many", offset=256):
        split_opaque_data(encode_opaque_data([(100, b"")] * 65))


def test_encode_of_too_large_number_is_refused() -> None:
    """Types and lengths fit in 16 bits."""
    for field in ((-1, b""), (1 << 16, b""), (1, bytes(1 << 16))):
        with raises(UsageError, "out_of_range"):
            encode_opaque_data([field])
    assert len(encode_opaque_data([(0xFFFF, bytes(0xFFFF))])) == 4 + 0xFFFF


@every_case("missing", [3, 6, 15, 17, 18])
def test_read_without_required_field_of_gpu_is_refused(missing: int) -> None:
    """A GPU states what the identifiers of its RIMs are made of."""
    left = tuple(field for field in GPU if field[0] != missing)
    with raises(FormatError, "missing", offset=45):
        read_opaque_data(left, "gpu", 45)


@pytest.mark.parametrize("missing", [6, 22])
def test_read_without_required_field_of_switch_is_refused(missing: int) -> None:
    """A switch states its version and its identifier."""
    left = tuple(field for field in SWITCH if field[0] != missing)
    with raises(FormatError, "missing", offset=45):
        read_opaque_data(left, "switch", 45)


@every_case("absent", [4, 11, 12, 13, 14, 16, 19, 20, 21])
def test_read_without_optional_field_gives_none(absent: int) -> None:
    """Fields that some firmware leaves out may be absent."""
    left = tuple(field for field in GPU if field[0] != absent)
    expected = read_opaque_data(GPU, "gpu")._asdict()
    if absent in {11, 20, 21}:
        expected[{11: "nvdec0", 20: "fwid", 21: "protected_pcie"}[absent]] = None
    assert read_opaque_data(left, "gpu")._asdict() == expected


@every_case(
    ("kind", "value", "reason"),
    [
        (6, bytes(7), "wrong_size"),
        (6, b"96.10.55.00.01", "wrong_size"),  # the form of a switch
        (11, b"\x00", "wrong_value"),
        (11, b"\xab", "wrong_value"),
        (11, b"", "wrong_size"),
        (11, b"\xaa\xaa", "wrong_size"),
        (21, b"\x01", "wrong_value"),
        (20, bytes(47), "wrong_size"),
        (20, bytes(32), "wrong_size"),
        (3, b"", "wrong_value"),
        (3, b"\0", "wrong_value"),
        (3, b"550\0.90\0", "wrong_value"),  # text after a NUL
        (3, b"550.90/../x\0", "wrong_value"),
        (3, b"550 90\0", "wrong_value"),
        (3, b".550\0", "wrong_value"),
        (3, b"1" * 33, "wrong_value"),
        (3, b"550\n\0", "wrong_value"),
        (3, "550é\0".encode(), "wrong_value"),
        (15, b"8?2\0", "wrong_value"),
        (17, b"\xff\0", "wrong_value"),
        (18, b"%2e\0", "wrong_value"),
        (35, b"GB/100\0", "wrong_value"),
        (22, bytes(143), "wrong_size"),
        (26, bytes(127), "wrong_size"),
        (34, b"\x02\0", "unsupported_version"),
        (34, b"\0\x01", "unsupported_version"),
        (34, b"\0", "wrong_size"),
        (36, b"\0", "wrong_size"),
    ],
)
def test_read_of_wrong_value_is_refused(kind: int, value: bytes, reason: str) -> None:
    """Each value is of its size and set; the error has the offset of the value."""
    changed = gpu_with(kind, value)
    before = encode_opaque_data(changed).index(encode_opaque_data([(kind, value)]))
    with raises(FormatError, reason, offset=45 + before + 4):
        read_opaque_data(changed, "gpu", 45)


@every_case(
    ("kind", "value", "name", "expected"),
    [
        (6, bytes.fromhex("008800970f000000"), "vbios_version", "97.00.88.00.0F"),
        (11, b"\xaa", "nvdec0", True),
        (11, b"\x55", "nvdec0", False),
        (21, b"\xaa", "protected_pcie", True),
        (3, b"1" * 32, "driver_version", "1" * 32),
        (15, b"886\0\0\0", "chip_sku", "886"),
        (34, b"\0\0", "opaque_version", 0),
        (36, b"\2\0", "feature", 2),
        (36, b"\2\1", "feature", 0x102),
        (35, b"GB100", "chip_info", "GB100"),
        (22, bytes(8) + bytes(range(1, 9)) + bytes(8), "switch_pdis", (bytes(range(8, 0, -1)),)),
        (22, bytes(144), "switch_pdis", ()),
    ],
)
def test_read_of_allowed_value_gives_it(
    kind: int, value: bytes, name: str, expected: object
) -> None:
    """Values are decoded: texts without NULs, identifiers of switches reversed, zeros left out."""
    found = read_opaque_data(gpu_with(kind, value), "gpu")._asdict()
    assert found == {**read_opaque_data(GPU, "gpu")._asdict(), name: expected}


def test_read_of_switch_leaves_out_unused_ports() -> None:
    """Identifiers of GPUs that are zero, and the bytes of ports, are left out."""
    first, second = bytes(range(1, 9)), bytes(range(2, 10))
    value = first + bytes(8) + second + bytes(40) + b"\xff" * 64
    changed = tuple({**SWITCH_FIELDS, 26: value}.items())
    assert read_opaque_data(changed, "switch").gpu_pdis == (first, second)
