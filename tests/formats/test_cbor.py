"""The CBOR reader: accepted values, rejected encodings and limits."""

import cbor2
import pytest
from hypothesis import strategies as st

from attestkit._formats import binary_layout, cbor
from attestkit._formats.cbor import CborReader, read_value
from attestkit.errors import FormatError
from tests.attestation.samples import is_rejected
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import thorough
from tests.untyped import untyped


def test_cbor_reader_skip_accepts_every_definite_type() -> None:
    """Every definite-length CBOR item can be skipped as one value."""
    values = ["00", "1818", "190100", "1a00010000", "1b0000000100000000", "20", "3818", "4161"]
    values += ["40", "60", "6161", "80", "820102", "a0", "a10102", "c100", "d81800", "f4", "f6"]
    values += ["f93c00", "fa00000000", "fb" + "00" * 8, "e0", "f8ff"]
    for value in values:
        reader = CborReader(bytes.fromhex(value))
        reader.skip()
        assert reader.at == len(value) // 2, value
    for value, reason in (
        ("", "truncated"),
        ("18", "truncated"),
        ("ff", "syntax"),
        ("5f", "not_canonical"),
        ("1817", "not_canonical"),
        ("1c", "syntax"),
        ("41", "truncated"),
        ("8201", "truncated"),
    ):
        with raises(FormatError, reason):
            CborReader(bytes.fromhex(value)).skip()


@every_case(
    ("encoded", "value"),
    [
        ("00", 0),
        ("1bffffffffffffffff", 2**64 - 1),
        ("3863", -100),
        ("f4", False),
        ("f5", True),
        ("f6", None),
        ("43010203", b"\1\2\3"),
        ("5f42010243030405ff", b"\1\2\3\4\5"),
        ("7f657374726561646d696e67ff", "streaming"),
        ("9f018202039f0405ffff", [1, [2, 3], [4, 5]]),
        ("bf61610161629f0203ffff", {"a": 1, "b": [2, 3]}),
        ("1800", 0),
    ],
)
def test_read_value_of_rfc8949_examples_returns_values(encoded: str, value: object) -> None:
    """The examples of RFC 8949 appendix A are read, including indefinite lengths and long heads."""
    found = read_value(bytes.fromhex(encoded))
    assert found == value
    assert type(found) is type(value)


@every_case(
    ("encoded", "reason", "offset"),
    [
        ("", "truncated", 0),
        ("f93c00", "unsupported", 0),  # a float
        ("f7", "unsupported", 0),  # undefined
        ("f814", "unsupported", 0),  # false in two bytes
        ("c001", "unsupported", 0),  # a tag
        ("1c", "syntax", 0),  # reserved additional information
        ("ff", "syntax", 0),  # a break without a container
        ("5f01ff", "syntax", 1),  # an integer among chunks of a byte string
        ("5f5f4101ffff", "syntax", 1),  # nested chunks
        ("7f4161ff", "syntax", 1),  # a byte string among chunks of text
        ("7f61c3", "encoding", 1),
        ("7f61c361a9ff", "encoding", 1),  # text cut inside a character
        ("61ff", "encoding", 0),
        ("a2010201 03", "duplicate", 3),
        ("a10102 00", "trailing_data", 3),
        ("a1800a", "wrong_type", 1),
        ("a17f6161ff0a", "wrong_type", 1),  # a map key of indefinite length
        ("9f01", "truncated", 2),
        ("df", "syntax", 0),
        ("5c", "syntax", 0),  # a byte string with a reserved length
        ("3f", "syntax", 0),  # an integer of indefinite length
    ],
)
def test_read_value_of_excluded_value_names_reason_and_offset(
    encoded: str, reason: str, offset: int
) -> None:
    """Floats, tags, invalid chunks, duplicate keys and trailing bytes raise FormatError."""
    with raises(FormatError, reason, offset=offset):
        read_value(bytes.fromhex(encoded))


def test_cbor_reader_at_text_detects_major_type() -> None:
    """A text string is recognised by its head, also at the end of the data."""
    assert [first for first in range(256) if CborReader(bytes([first])).is_text()] == [
        *range(0x60, 0x80)
    ]
    assert not CborReader(b"").is_text()


def test_read_value_with_allowed_tag_accepts_only_that_tag() -> None:
    """The allowed tag is optional; any other tag is rejected."""
    assert read_value(b"\xd2\x01", tag=18) == 1
    assert read_value(b"\x01", tag=18) == 1
    with raises(FormatError, "unsupported", offset=0):
        read_value(b"\xd3\x01", tag=18)


@pytest.mark.parametrize("pieces", [b"\x5f" + b"\x40" * 65_536, b"\x7f" + b"\x60" * 65_536])
def test_read_value_chunks_count_as_values(pieces: bytes) -> None:
    """Chunks of a string, including empty ones, count towards the limit of values."""
    assert not read_value(pieces[:-1] + b"\xff")
    with raises(FormatError, "too_many"):
        read_value(pieces + b"\xff")


def test_read_value_over_value_limit_fails() -> None:
    """A short document with too many small values is rejected."""
    assert len(untyped(read_value(cbor2.dumps([0] * 65_535)))) == 65_535
    with raises(FormatError, "too_many"):
        read_value(cbor2.dumps([0] * 65_536))


MOST_SKIPPED = 1 << 17  # in the tests; over the recursion limit of Python


@pytest.mark.parametrize("nested", [True, False])
def test_skip_over_value_limit_fails(monkeypatch: pytest.MonkeyPatch, *, nested: bool) -> None:
    """More than 1,048,576 skipped values are rejected, whether nested or in sequence."""
    assert binary_layout._MAX_SKIPPED == 1 << 20
    monkeypatch.setattr(binary_layout, "_MAX_SKIPPED", MOST_SKIPPED)
    few = b"\x81" * (MOST_SKIPPED - 1) + b"\0"
    many = b"\x81" + few
    if not nested:
        few = b"\x9a" + (MOST_SKIPPED - 1).to_bytes(4, "big") + bytes(MOST_SKIPPED - 1)
        many = b"\x9a" + MOST_SKIPPED.to_bytes(4, "big") + bytes(MOST_SKIPPED)
    reader = CborReader(few)
    reader.skip()
    assert reader.at == len(few)
    with raises(FormatError, "too_many"):
        CborReader(many).skip()


def test_skip_counts_values_over_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of skipped values applies to the document, not to one call."""
    monkeypatch.setattr(binary_layout, "_MAX_SKIPPED", 5)
    reader = CborReader(bytes(6))
    for _ in range(5):
        reader.skip()
    with raises(FormatError, "too_many", offset=5):
        reader.skip()


@every_case("around", [b"\x81", b"\xa1\0", b"\x9f", b"\xbf\0"])
def test_read_value_nested_deeper_than_16_fails(around: bytes) -> None:
    """A value may be nested in at most 16 arrays or maps."""
    close = b"\xff" if around[0] & 0x1F == 0x1F else b""
    assert read_value(around * 16 + b"\0" + close * 16)
    with raises(FormatError, "too_deep", offset=16 * len(around) + 1):
        read_value(around * 17 + b"\0" + close * 17)


@every_case(("size", "least"), [(1, 24), (2, 1 << 8), (4, 1 << 16), (8, 1 << 32)])
def test_canonical_head_longer_than_needed_fails(size: int, least: int) -> None:
    """With canonical encoding required, a head must have its shortest form."""
    head = bytes([0x18 + size.bit_length() - 1])
    assert CborReader(head + least.to_bytes(size, "big")).integer() == least
    with raises(FormatError, "not_canonical", offset=0):
        CborReader(head + (least - 1).to_bytes(size, "big")).integer()


def test_skip_one_byte_values_match_their_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly the initial bytes that are complete values are skipped without decoding."""

    def is_single_byte_value(first: int) -> bool:
        return not is_rejected(lambda data: CborReader(data).skip(), bytes([first]))

    quickly = list(map(is_single_byte_value, range(256)))
    monkeypatch.setattr(cbor, "_WHOLE", frozenset())
    assert list(map(is_single_byte_value, range(256))) == quickly


def test_cbor_reader_wrong_type_names_expected_type() -> None:
    """The typed methods of the cursor name the type that they expected."""
    assert CborReader(b"\xf6").nil()
    assert not CborReader(b"\0").nil()
    for method in ("count", "integer", "text", "blob"):
        with raises(FormatError, "wrong_type", offset=0):
            getattr(CborReader(b"\xa0"), method)()


@thorough(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(2), inner),
        max_leaves=20,
    ),
    few=30,
    many=200,
)
def test_read_value_of_cbor2_output_returns_equal_value(value: object) -> None:
    """Output of cbor2 for the allowed types is read as the same value."""
    if not is_rejected(read_value, cbor2.dumps(value)):  # rejected: nested deeper than 16
        assert read_value(cbor2.dumps(value)) == value


def test_read_value_of_map_over_entry_limit_fails() -> None:
    """The entries of a map are limited, because integer keys can be chosen to collide."""
    most = dict.fromkeys(range(4096))
    assert read_value(cbor2.dumps(most)) == most
    with raises(FormatError, "too_many"):
        read_value(cbor2.dumps(dict.fromkeys(range(4097))))
