"""The reader of CBOR: what it reads, what it refuses, and how much of it."""

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._formats import cbor
from attestkit._formats.cbor import CborReader, read_value
from attestkit.errors import FormatError
from tests.attestation.samples import refused
from tests.untyped import untyped


def test_the_reader_skips_every_type() -> None:
    """Whatever CBOR can say with definite lengths is skipped as one value."""
    values = ["00", "1818", "190100", "1a00010000", "1b0000000100000000", "20", "3818", "4161"]
    values += ["40", "60", "6161", "80", "820102", "a0", "a10102", "c100", "d81800", "f4", "f6"]
    values += ["f93c00", "fa00000000", "fb" + "00" * 8, "e0", "f8ff"]
    for value in values:
        reader = CborReader(bytes.fromhex(value))
        reader.skip()
        assert reader.at == len(value) // 2, value
    for value in ("", "18", "ff", "5f", "1817", "1c", "41", "8201"):
        with pytest.raises(FormatError):
            CborReader(bytes.fromhex(value)).skip()


@pytest.mark.parametrize(
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
def test_values_of_others_are_read(encoded: str, value: object) -> None:
    """What RFC 8949, appendix A, shows is read, indefinite lengths and long heads included."""
    found = read_value(bytes.fromhex(encoded))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "encoded",
    [
        "",
        "f93c00",  # a float
        "f7",  # undefined
        "f814",  # false, written too long
        "c001",  # a tag
        "1c",  # a reserved head
        "ff",  # a break of nothing
        "5f01ff",  # a number among pieces of bytes
        "5f5f4101ffff",  # pieces in pieces
        "7f4161ff",  # bytes among pieces of text
        "7f61c3",
        "7f61c361a9ff",  # text that is cut inside of a character
        "61ff",
        "a2010201 03",
        "a10102 00",
        "a1800a",
        "9f01",
        "df",
        "5c",  # bytes of a reserved length
        "3f",  # a number of indefinite length
    ],
)
def test_values_that_are_excluded_are_refused(encoded: str) -> None:
    """Floats, tags, broken pieces, doubled keys and trailing bytes are FormatErrors."""
    with pytest.raises(FormatError) as caught:
        read_value(bytes.fromhex(encoded))
    assert caught.value.offset is not None


def test_a_text_is_told() -> None:
    """Before it is read, also where the data end."""
    assert [first for first in range(256) if CborReader(bytes([first])).is_text()] == [
        *range(0x60, 0x80)
    ]
    assert not CborReader(b"").is_text()


def test_one_tag_may_be_asked_for() -> None:
    """The named tag may stand in front, or not; another may not."""
    assert read_value(b"\xd2\x01", tag=18) == 1
    assert read_value(b"\x01", tag=18) == 1
    with pytest.raises(FormatError):
        read_value(b"\xd3\x01", tag=18)


@pytest.mark.parametrize("pieces", [b"\x5f" + b"\x40" * 65_536, b"\x7f" + b"\x60" * 65_536])
def test_pieces_are_counted(pieces: bytes) -> None:
    """Pieces of a string, empty ones too, count like values."""
    assert not read_value(pieces[:-1] + b"\xff")
    with pytest.raises(FormatError, match="too many CBOR values"):
        read_value(pieces + b"\xff")


def test_values_are_counted() -> None:
    """A document of too many small values is refused, however short it is."""
    assert len(untyped(read_value(cbor2.dumps([0] * 65_535)))) == 65_535
    with pytest.raises(FormatError, match="too many"):
        read_value(cbor2.dumps([0] * 65_536))


MOST_SKIPPED = 1 << 20


@pytest.mark.parametrize("nested", [True, False])
def test_values_that_are_skipped_are_counted(*, nested: bool) -> None:
    """Over 1,048,576 values that nobody knows are refused, one in another or one behind another."""
    few = b"\x81" * (MOST_SKIPPED - 1) + b"\0"
    many = b"\x81" + few
    if not nested:
        few = b"\x9a" + (MOST_SKIPPED - 1).to_bytes(4, "big") + bytes(MOST_SKIPPED - 1)
        many = b"\x9a" + MOST_SKIPPED.to_bytes(4, "big") + bytes(MOST_SKIPPED)
    reader = CborReader(few)
    reader.skip()
    assert reader.at == len(few)
    with pytest.raises(FormatError, match="over 1048576 unknown values"):
        CborReader(many).skip()


def test_values_that_are_skipped_are_counted_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small ones are as many as those of a large one."""
    monkeypatch.setattr(cbor, "_MAX_SKIPPED", 5)
    reader = CborReader(bytes(6))
    for _ in range(5):
        reader.skip()
    with pytest.raises(FormatError, match="over 5 unknown values"):
        reader.skip()


@pytest.mark.parametrize("around", [b"\x81", b"\xa1\0", b"\x9f", b"\xbf\0"])
def test_depth_is_limited(around: bytes) -> None:
    """A value may be in 16 arrays or maps, and in no more."""
    close = b"\xff" if around[0] & 0x1F == 0x1F else b""
    assert read_value(around * 16 + b"\0" + close * 16)
    with pytest.raises(FormatError, match="nested too deeply"):
        read_value(around * 17 + b"\0" + close * 17)


@pytest.mark.parametrize(("size", "least"), [(1, 24), (2, 1 << 8), (4, 1 << 16), (8, 1 << 32)])
def test_heads_are_of_the_shortest_form(size: int, least: int) -> None:
    """What would have had room in a shorter head is refused, where one form is wanted."""
    head = bytes([0x18 + size.bit_length() - 1])
    assert CborReader(head + least.to_bytes(size, "big")).integer() == least
    with pytest.raises(FormatError, match="shortest form"):
        CborReader(head + (least - 1).to_bytes(size, "big")).integer()


def test_a_skipped_byte_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """First bytes that are passed over at once are values by themselves, and no others are."""

    def passes(first: int) -> bool:
        return not refused(lambda data: CborReader(data).skip(), bytes([first]))

    quickly = list(map(passes, range(256)))
    monkeypatch.setattr(cbor, "_WHOLE", frozenset())
    assert list(map(passes, range(256))) == quickly


def test_numbers_are_read_strictly() -> None:
    """The cursor's own methods name what they wanted."""
    assert CborReader(b"\xf6").nil()
    assert not CborReader(b"\0").nil()
    for method in ("count", "integer", "text", "blob"):
        with pytest.raises(FormatError, match="no "):
            getattr(CborReader(b"\xa0"), method)()


@settings(deadline=None)  # machines are busy
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.binary() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(2), inner),
        max_leaves=20,
    )
)
def test_the_reader_agrees_with_cbor2(value: object) -> None:
    """Whatever cbor2 writes of the allowed types is read as the same."""
    if not refused(read_value, cbor2.dumps(value)):  # refused: nested deeper than 16
        assert read_value(cbor2.dumps(value)) == value


def test_a_map_has_few_entries() -> None:
    """Numbers can be chosen that collide as keys, so their number is bounded."""
    most = dict.fromkeys(range(4096))
    assert read_value(cbor2.dumps(most)) == most
    with pytest.raises(FormatError, match="more than 4096 entries"):
        read_value(cbor2.dumps(dict.fromkeys(range(4097))))


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever comes, only FormatError comes out."""
    refused(read_value, data)
