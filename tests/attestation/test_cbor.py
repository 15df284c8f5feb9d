"""CBOR evidence: deterministic, marked, and read without trusting a byte of it."""

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation import cbor, document, v1_msgpack
from attestkit.attestation.cbor import CborReader, read_value
from attestkit.attestation.platforms import Evidence
from attestkit.errors import FormatError, UsageError
from tests.attestation.samples import KINDS, POD, STACK, V2, cuts, mutations, refused

EVIDENCE = [*KINDS, V2, POD]
ENCODED = [cbor.encode(evidence) for evidence in EVIDENCE]
MARK = b"\xd9\xd9\xf7"


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_every_kind_survives(evidence: Evidence) -> None:
    """Evidence of every platform and stack is read back as it was written."""
    assert cbor.decode(cbor.encode(evidence)) == evidence


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_it_is_plain_cbor(evidence: Evidence) -> None:
    """Another CBOR library reads the tree of V1, bytes as byte strings, behind the mark."""
    encoded = cbor.encode(evidence)
    assert encoded.startswith(MARK)
    assert cbor2.loads(encoded[3:]) == document.tree(evidence)


def test_keys_are_sorted() -> None:
    """The encoding is deterministic: keys stand in the order of their own encodings."""
    assert ENCODED[2].startswith(MARK + b"\xa3\x65stack\xa2\x64data\xa3\x66config")


@pytest.mark.parametrize("encoded", [encoded for encoded in ENCODED if len(encoded) < 5000])
def test_cut_anywhere_it_is_refused(encoded: bytes) -> None:
    """No prefix of evidence is evidence."""
    for cut in cuts(encoded):
        with pytest.raises(FormatError, match=r"CBOR|wire format"):
            cbor.decode(cut)


def test_trailing_bytes_are_counted() -> None:
    """Bytes behind the evidence are refused with their number."""
    with pytest.raises(FormatError, match=r"^trailing bytes after attestation CBOR: 2$"):
        cbor.decode(ENCODED[0] + bytes(2))


def test_another_version_is_named() -> None:
    """Only version 1 is known."""
    whole = cbor2.loads(ENCODED[0][3:]) | {"version": 300}
    with pytest.raises(
        FormatError, match=r"^unsupported attestation version: expected 1, got 300$"
    ):
        cbor.decode(MARK + cbor2.dumps(whole))


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        ("bf", "indefinite"),
        ("b80361", "shortest"),
        ("a0", "version is missing"),
        ("80", "version is missing"),
        ("a16776657273696f6e20", "unsigned"),
        ("a168706c6174666f726d01", "no map or array"),
        ("a1656f74686572c1", "bytes wanted"),
        ("c0a0", "no map or array"),
        ("9bffffffffffffffff", "items wanted"),
        ("a161ff", "UTF-8"),
        ("a141", "no text"),
    ],
)
def test_evidence_in_another_form_is_refused(encoded: str, text: str) -> None:
    """Indefinite lengths, long heads and wrong types are refused with an offset."""
    with pytest.raises(FormatError, match=text) as caught:
        cbor.decode(MARK + bytes.fromhex(encoded))
    assert caught.value.offset is not None


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


def test_the_mark_is_needed_in_full() -> None:
    """A first byte d9 alone marks nothing."""
    with pytest.raises(FormatError, match=r"^Unknown attestation wire format$"):
        cbor.decode(b"\xd9\xd9\xf8\xa0")


@pytest.mark.parametrize("nest", [b"\x81", b"\xa1\x61x", b"\xc1"])
def test_deep_nesting_is_no_danger(nest: bytes) -> None:
    """A value nested a million times neither crashes nor is slow, skipped or read."""
    deep = nest * (1_000_000 // len(nest)) + b"\0"
    good = MARK + b"\xa4\x67unknown" + deep + ENCODED[2][4:]
    assert cbor.decode(good) == KINDS[2]
    with pytest.raises(FormatError):
        read_value(deep)


def test_what_is_unknown_is_limited() -> None:
    """A million values are passed over, and not ten."""
    deep = b"\x81" * 1_100_000 + b"\0"
    with pytest.raises(FormatError, match="over 1048576 unknown values"):
        cbor.decode(MARK + b"\xa4\x67unknown" + deep + ENCODED[2][4:])


def test_half_a_surrogate_pair_cannot_be_written() -> None:
    """Text without a UTF-8 form is the caller's mistake."""
    evidence = Evidence(KINDS[2].platform, STACK._replace(config="\ud800"))
    with pytest.raises(UsageError, match="surrogate"):
        cbor.encode(evidence)


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
    assert len(read_value(cbor2.dumps([0] * 65_535))) == 65_535  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="too many"):
        read_value(cbor2.dumps([0] * 65_536))


def test_numbers_are_read_strictly() -> None:
    """The cursor's own methods name what they wanted."""
    assert CborReader(b"\xf6").nil()
    assert not CborReader(b"\0").nil()
    for method in ("count", "integer", "text", "blob"):
        with pytest.raises(FormatError, match="no "):
            getattr(CborReader(b"\xa0"), method)()


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=200).map(lambda tail: MARK + tail))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever comes, only FormatError comes out."""
    refused(cbor.decode, data)
    refused(read_value, data[3:])


@settings(deadline=None)  # machines are busy
@given(mutations(*[encoded[:2000] for encoded in ENCODED]))
def test_mutated_evidence_is_read_or_refused(data: bytes) -> None:
    """What can be read after a mutation survives in this encoding and in msgpack."""
    if not refused(cbor.decode, data):
        evidence = cbor.decode(data)
        assert cbor.decode(cbor.encode(evidence)) == evidence
        assert v1_msgpack.decode(v1_msgpack.encode(evidence)) == evidence


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
