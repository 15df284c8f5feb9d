"""The compiled and the Python core check the structure of CBOR equally, before cbor2 decodes it."""

from typing import Any

import cbor2
import pytest
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python_cbor
from attestkit.attestation.wire import v1_cbor
from attestkit.errors import FormatError
from tests.attestation.samples import KINDS, POD, V2, mutations, prefixes
from tests.runner.cases import every_case
from tests.thorough import thorough
from tests.untyped import untyped, with_false_length

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

CORES: list[Any] = [_native.cbor_check, _python_cbor.cbor_check]
EVIDENCE = [v1_cbor.encode_evidence(evidence)[3:] for evidence in (*KINDS, V2, POD)]

# Heads of each major type and size, break, floats, simple values, and parts of UTF-8.
HEADS = [0x00, 0x01, 0x17, 0x18, 0x19, 0x1A, 0x1B, 0x1C, 0x20, 0x38, 0x40, 0x41, 0x42, 0x58, 0x5F]
HEADS += [0x60, 0x61, 0x62, 0x78, 0x7F, 0x80, 0x81, 0x82, 0x98, 0x9F, 0xA0, 0xA1, 0xA2, 0xB8, 0xBF]
HEADS += [0xC1, 0xD8, 0xE0, 0xF4, 0xF5, 0xF6, 0xF7, 0xF8, 0xF9, 0xFA, 0xFB, 0xFF, 0xC3, 0xA9]
SOUP = st.lists(st.sampled_from(HEADS), max_size=24).map(bytes)


def outcome(check: Any, data: bytes, start: int, *, canonical: bool) -> tuple[Any, ...]:
    """Return reason, offset and message of the error; nothing if the data are accepted."""
    try:
        check(data, start, canonical=canonical)
    except FormatError as error:
        return error.reason, error.offset, str(error)
    return ()


def checked(data: bytes, *, start: int = 0, canonical: bool = False) -> tuple[Any, ...]:
    """Return the outcome of both cores, which must be equal."""
    ours, twin = [outcome(check, data, start, canonical=canonical) for check in CORES]
    assert ours == twin, data.hex()
    return ours


@st.composite
def heads(draw: st.DrawFn, major: int, argument: int) -> bytes:
    """Return a head, mostly in its shortest form."""
    least = 0 if argument < 24 else max((argument.bit_length() + 7) // 8, 1)
    size = draw(st.sampled_from([size for size in (0, 1, 2, 4, 8) if size >= least]))
    if not draw(st.integers(0, 4)):
        size = min(size for size in (0, 1, 2, 4, 8) if size >= least)
    if size == 0:
        return bytes([major << 5 | argument])
    return bytes([major << 5 | 23 + size.bit_length()]) + argument.to_bytes(size, "big")


@st.composite
def documents(draw: st.DrawFn, depth: int = 0) -> bytes:
    """Return a value in any of its encodings; some have unsupported types or duplicate keys."""
    major = draw(st.integers(0, 7))
    if depth == 3 and 4 <= major <= 6:
        major = 0
    if major < 2:
        return draw(heads(major, draw(st.integers(0, 2**64 - 1) | st.integers(0, 30))))
    if major == 7:
        return draw(
            st.sampled_from([b"\xf4", b"\xf5", b"\xf6", b"\xf7", b"\xf9\x3c\0", b"\xf8\x15"])
        )
    if major == 6:
        return b"\xc1" * draw(st.integers(0, 1)) + draw(documents(depth + 1))
    indefinite = draw(st.integers(0, 3)) == 0
    if major < 4:
        content = draw(st.binary(max_size=4) if major == 2 else st.text(max_size=3).map(str.encode))
        whole = draw(heads(major, len(content))) + content
        return bytes([major << 5 | 31]) + whole * 2 + b"\xff" if indefinite else whole
    count = draw(st.integers(0, 3))
    items = b"".join(draw(documents(depth + 1)) for _ in range(count * (major - 3)))
    if indefinite:
        return bytes([major << 5 | 31]) + items + b"\xff"
    return draw(heads(major, count)) + items


def are_plain(value: object) -> bool:
    """Return whether a decoded value has only the types that the check allows."""
    if type(value) is dict:
        return all(are_plain(part) for entry in value.items() for part in entry)
    if type(value) is list:
        return all(map(are_plain, value))
    return value is None or type(value) in {bool, int, bytes, str}


@thorough(documents() | SOUP, st.booleans(), few=250, many=5000)
def test_cores_agree_and_accept_what_cbor2_reads(data: bytes, canonical: bool) -> None:
    """Both cores agree; cbor2 decodes accepted data, and encodes canonical ones to the same."""
    if checked(data, canonical=canonical) == ():
        found = cbor2.loads(data)
        assert are_plain(found)
        if canonical:
            assert cbor2.dumps(found) == data


@thorough(mutations(*EVIDENCE[:4], *EVIDENCE[5:]), st.booleans(), few=200, many=3000)
def test_cores_agree_on_changed_evidence(data: bytes, canonical: bool) -> None:
    """Both cores agree on evidence with a few bytes replaced, inserted or removed."""
    found = checked(b"\xff\xff" + data, start=2, canonical=canonical)
    if found == ():
        assert are_plain(cbor2.loads(data))


@pytest.mark.parametrize("evidence", [*EVIDENCE[:4], *EVIDENCE[5:]])
def test_evidence_cut_at_any_length_is_truncated(evidence: bytes) -> None:
    """No proper prefix of evidence is accepted, and bytes behind it are trailing data."""
    assert checked(evidence, canonical=True) == ()
    for cut in prefixes(evidence):
        reason, offset, _ = checked(cut, canonical=True)
        assert reason == "truncated"
        assert 0 <= offset <= len(cut)
    assert checked(evidence + b"\0", canonical=True)[:2] == ("trailing_data", len(evidence))


@every_case(
    ("encoded", "reason", "offset"),
    [
        ("9fff", "not_canonical", 0),
        ("bfff", "not_canonical", 0),
        ("5fff", "not_canonical", 0),
        ("817fff", "not_canonical", 1),
        ("1817", "not_canonical", 0),
        ("811900ff", "not_canonical", 1),
        ("1a0000ffff", "not_canonical", 0),
        ("1b00000000ffffffff", "not_canonical", 0),
        ("580100", "not_canonical", 0),
        ("980101", "not_canonical", 0),
        ("b8010101", "not_canonical", 0),
        ("f814", "unsupported", 0),
    ],
)
def test_canonical_check_refuses_other_encodings(encoded: str, reason: str, offset: int) -> None:
    """Indefinite lengths and long heads are refused only where the canonical form is required."""
    data = bytes.fromhex(encoded)
    assert checked(data, canonical=True)[:2] == (reason, offset)
    assert (checked(data) == ()) is (reason == "not_canonical")


# Keys that Python finds equal, in encodings that differ.
SAME_KEYS = [
    ("01", "1801"),
    ("01", "190001"),
    ("1a00000001", "1b0000000000000001"),
    ("01", "f5"),
    ("f4", "1800"),
    ("20", "3800"),
    ("6161", "780161"),
    ("4161", "590001" + "61"),
    ("60", "7800"),
    ("f6", "f6"),
]


@every_case(("one", "other"), [*SAME_KEYS, *[pair[::-1] for pair in SAME_KEYS]])
@every_case("between", ["", "02f6", "6162f6", "33f6"])
def test_equal_keys_in_different_encodings_are_duplicates(
    one: str, other: str, between: str
) -> None:
    """Equal keys are duplicates whatever their encodings are, and wherever they are in the map."""
    entries = one + "f6" + between + other + "f6"
    data = bytes.fromhex("bf" + entries + "ff")
    place = 1 + (len(one) + 2 + len(between)) // 2
    assert checked(data)[:2] == ("duplicate", place)
    definite = bytes([0xA2 + bool(between)]) + data[1:-1]
    assert checked(definite)[:2] == ("duplicate", place)
    assert checked(b"\xa1\0" + definite)[:2] == ("duplicate", place + 2)


@pytest.mark.parametrize("pair", ["00 20", "00 40", "40 60", "6161 4161", "00 f6", "6161 626161"])
def test_keys_of_different_types_differ(pair: str) -> None:
    """Keys of different types, or of which one is a prefix of the other, are different keys."""
    one, other = map(bytes.fromhex, pair.split())
    for first, second in ((one, other), (other, one)):
        assert checked(b"\xa2" + first + b"\xf6" + second + b"\xf6", canonical=True) == ()


@pytest.mark.parametrize("key", ["80", "8101", "a0", "a10102", "9fff", "bfff", "5fff", "7f6161ff"])
def test_map_key_of_unsupported_form_fails(key: str) -> None:
    """Arrays, maps and strings of indefinite length are rejected as keys."""
    assert checked(bytes.fromhex("a1" + key + "00"))[:2] == ("wrong_type", 1)
    assert checked(bytes.fromhex("a200f6" + key + "00"))[:2] == ("wrong_type", 3)


@every_case("major", [2, 3, 4, 5])
@every_case("count", [4, 1 << 16, 1 << 31, 1 << 32, (1 << 63) - 1, (1 << 64) - 1])
def test_huge_count_or_length_is_truncated(major: int, count: int) -> None:
    """A length or count beyond the data is refused where they end, without memory for it."""
    head = bytes([major << 5 | 27]) + count.to_bytes(8, "big")
    assert checked(head + b"\0\0")[0] == "truncated"
    assert checked(b"\x81" + head)[0] == "truncated"


@pytest.mark.parametrize("around", [b"\x81", b"\xa1\0", b"\x9f", b"\xbf\0", b"\xa1"])
def test_deep_nesting_fails_at_the_limit(around: bytes) -> None:
    """A value inside 17 arrays or maps is refused, however deep the rest is."""
    for levels in (17, 18, 1_000_000):
        assert checked(around * levels + b"\0")[:2] == ("too_deep", 16 * len(around) + 1)
    assert checked(around * 16)[0] == "truncated"


def test_number_of_values_is_limited() -> None:
    """65,536 values are accepted, and one more is not; chunks of strings count."""
    assert checked(b"\x99\xff\xff" + bytes(65_535), canonical=True) == ()
    more = b"\x9a\0\1\0\0" + bytes(65_536)
    assert checked(more, canonical=True)[:2] == ("too_many", len(more) - 1)
    for chunks in (b"\x5f" + b"\x40" * 65_536, b"\x7f" + b"\x60" * 65_536):
        assert checked(chunks[:-1] + b"\xff") == ()
        assert checked(chunks + b"\xff")[:2] == ("too_many", 65_536)


def int_map(keys: range) -> bytes:
    """Return a map with these keys below 65,536, each in three bytes."""
    entries = b"".join(b"\x19" + key.to_bytes(2, "big") + b"\0" for key in keys)
    return b"\xb9" + len(keys).to_bytes(2, "big") + entries


@pytest.mark.parametrize("keys", [range(256, 4352), range(4351, 255, -1)])
def test_number_of_entries_is_limited(keys: range) -> None:
    """4,096 entries are accepted, in any order, and one more is not; all are compared."""
    assert checked(int_map(keys), canonical=True) == ()
    more = b"\xb9\x10\1" + int_map(keys)[3:] + b"\0\0"
    assert checked(more)[:2] == ("too_many", len(more) - 2)
    again = b"\xb9\x10\0" + int_map(keys[:-1])[3:] + int_map(keys[:1])[3:]
    assert checked(again)[:2] == ("duplicate", len(again) - 4)


def test_keys_of_nested_maps_are_compared_in_their_own_map() -> None:
    """A key may recur in an inner map, and more keys than fit on the stack are kept."""
    inner = int_map(range(256, 556))
    entry = inner[3:7]
    outer = b"\xb9\1\x2d" + inner[3:-1] + inner + b"\x18\x20" + inner
    assert checked(outer) == ()
    again = b"\xb9\1\x2d" + inner[3:-1] + inner + entry
    assert checked(again)[:2] == ("duplicate", len(again) - 4)


def test_large_document_is_checked() -> None:
    """From 256 KiB on the compiled core releases the GIL."""
    large = b"\x82\x7a\0\x08\0\0" + b"a" * (1 << 19) + b"\x62\xc3\xa9"
    assert checked(large, canonical=True) == ()
    assert checked(large[:-1])[0] == "truncated"
    assert checked(large[:-2] + b"\xc3\xff")[0] == "encoding"


@thorough(st.text(max_size=40).map(str.encode) | st.binary(max_size=40), few=300, many=3000)
def test_text_is_utf8_as_python_decodes_it(content: bytes) -> None:
    """Text is accepted exactly if Python decodes it, wherever other characters than ASCII are."""
    expected: tuple[Any, ...] = ()
    try:
        content.decode()
    except UnicodeDecodeError:
        expected = ("encoding", 1)
    assert checked(b"\x81\x78" + bytes([len(content)]) + content)[:2] == expected


@compiled
@pytest.mark.parametrize("data", [bytearray(b"\0"), memoryview(b"\0"), "\0", None])
def test_check_of_other_types_is_type_error(data: object) -> None:
    """Buffers that another thread could change are rejected."""
    with pytest.raises(TypeError):
        _native.cbor_check(untyped(data), 0, canonical=False)


@compiled
@pytest.mark.parametrize("start", [-1, 2])
def test_check_from_outside_of_the_data_is_value_error(start: int) -> None:
    """The check begins inside the data, or at their end."""
    with pytest.raises(ValueError, match="inside"):
        _native.cbor_check(b"\0", start, canonical=False)
    assert checked(b"\0", start=1)[:2] == ("truncated", 1)


@compiled
def test_check_uses_stored_length() -> None:
    """The core uses the stored length, not an overridden one."""
    _native.cbor_check(with_false_length(b"\0", 1 << 20), 0, canonical=False)
    with pytest.raises(FormatError):
        _native.cbor_check(with_false_length(b"\x81", 2), 0, canonical=False)
