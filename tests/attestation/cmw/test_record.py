"""CMW records and collections in CBOR and JSON follow draft-ietf-rats-msg-wrap."""

import json
from typing import Final

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._formats.compact_jws import from_base64url, to_base64url
from attestkit.attestation.cmw import record
from attestkit.attestation.cmw.json_form import read_json, write_json
from attestkit.attestation.cmw.record import (
    Cmw,
    Collection,
    Record,
    content_format,
    read_cbor,
    tag_number,
    write_cbor,
    write_tag,
)
from attestkit.errors import FormatError, UsageError
from tests.attestation.samples import prefixes
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

TYPES: Final = (
    "text/plain",
    "application/eat+cwt",
    'application/cose; cose-type="cose-sign1"',
    "a/b;c=d ; e=f",
)
RECORDS: Final = st.builds(
    Record,
    st.sampled_from(TYPES) | st.integers(0, 65_535),
    st.binary(max_size=40),
    st.none() | st.integers(1, 31),
)
KINDS: Final = st.none() | st.sampled_from(["tag:a.example,2025:b", "urn:a:b", "2.25.340", "1.3.0"])
NAMES: Final = st.text(max_size=9).filter(lambda name: name != record.KIND)


def messages(labels: st.SearchStrategy[int | str]) -> st.SearchStrategy[Cmw]:
    """Return records, and collections of them in at most three levels."""
    found: st.SearchStrategy[Cmw] = RECORDS
    for _ in range(3):
        entries = st.dictionaries(labels, found, min_size=1, max_size=4)
        found = RECORDS | st.builds(Collection, entries, KINDS)
    return found


@given(messages(NAMES | st.integers(-(2**64), 2**64 - 1)))
def test_cbor_message_round_trips_deterministically(message: Cmw) -> None:
    """A message is read back equal, with integer labels, from deterministic CBOR."""
    written = write_cbor(message)
    assert read_cbor(written) == message
    assert write_cbor(read_cbor(written)) == written


@given(messages(NAMES))
def test_json_message_round_trips(message: Cmw) -> None:
    """A message is read back equal from JSON, and has the same content as in CBOR."""
    assert read_json(write_json(message)) == message == read_cbor(write_cbor(message))


KNOWN: Final[list[tuple[str, Cmw]]] = [
    ("83 6a 746578742f706c61696e 42 6869 04", Record("text/plain", b"hi", 4)),
    ("82 183c 41 f6", Record(60, b"\xf6")),
    ("82 19ffff 40", Record(65_535, b"")),
    ("da 6374013d 41 f6", Record(60, b"\xf6")),
    ("a1 6161 82 00 40", Collection({"a": Record(0, b"")})),
    ("a2 00 82 00 40 20 da 63740101 41 00", Collection({0: Record(0, b""), -1: Record(0, b"\0")})),
    (
        "a2 6161 a1 6162 82 00 40 68 5f5f636d77635f74 66 322e32352e31",
        Collection({"a": Collection({"b": Record(0, b"")})}, "2.25.1"),
    ),
]


@every_case(("written", "message"), KNOWN)
def test_write_cbor_matches_known_bytes(written: str, message: Cmw) -> None:
    """Records, tags and collections have the expected CBOR bytes."""
    assert read_cbor(bytes.fromhex(written)) == message
    for cut in prefixes(bytes.fromhex(written)):
        with pytest.raises(FormatError) as caught:
            read_cbor(cut)
        assert caught.value.offset is not None


def test_write_json_matches_known_text() -> None:
    """A collection has the expected JSON text; no proper prefix of it is a collection."""
    text = b'{"__cmwc_t":"urn:a:b","a":["text/plain","aGk",4],"b":{"c":[60,"9g"]}}'
    inner = Collection({"c": Record(60, b"\xf6")})
    message = Collection({"a": Record("text/plain", b"hi", 4), "b": inner}, "urn:a:b")
    assert read_json(text) == message
    assert write_json(message) == text
    for cut in prefixes(text):
        with pytest.raises(FormatError):
            read_json(cut)


@every_case(
    ("number", "tag"),
    [(0, 1668546817), (60, 0x6374013D), (254, 0x637401FF), (255, 0x63740201), (65_024, 1668612095)],
)
def test_content_format_tag_skips_zero_bytes(number: int, tag: int) -> None:
    """RFC 9277: tags 1668546817 to 1668612095, 255 per row, so that no byte is zero."""
    assert tag_number(number) == tag
    assert content_format(tag) == number
    assert cbor2.loads(write_tag(number, b"a")) == cbor2.CBORTag(tag, b"a")


def test_content_format_tags_are_bijective() -> None:
    """Both conversions agree on all 65,025 tags; other numbers are not tags."""
    assert [content_format(tag_number(number)) for number in range(65_025)] == [*range(65_025)]
    for tag in (0, 55_799, 0x63740100, 0x63740200, 0x637502, 0x63750001, 2**32):
        assert content_format(tag) is None
    for number in (-1, 65_025):
        with raises(UsageError, "out_of_range"):
            tag_number(number)


def nest_record(levels: int) -> Cmw:
    """Return a record inside a number of collections."""
    message: Cmw = Record(0, b"")
    for _ in range(levels):
        message = Collection({"a": message})
    return message


def nest_in_cbor(levels: int) -> bytes:
    """Return the same in CBOR at any depth."""
    return bytes.fromhex("a16161") * levels + bytes.fromhex("820040")


def nest_in_json(levels: int) -> bytes:
    """Return the same in JSON at any depth."""
    return b'{"a":' * levels + b'[0,""]' + b"}" * levels


def test_collection_nested_deeper_than_four_fails() -> None:
    """Four levels are read and written; a fifth is rejected."""
    assert read_cbor(nest_in_cbor(4)) == nest_record(4) == read_json(nest_in_json(4))
    assert write_cbor(nest_record(4)) == nest_in_cbor(4)
    for deep in (5, 150, 100_000):
        with raises(FormatError, "too_deep", offset=12):
            read_cbor(nest_in_cbor(deep))
        with raises(FormatError, "too_deep"):
            read_json(nest_in_json(deep))
    for write in (write_cbor, write_json):
        with raises(UsageError, "wrong_value"):
            write(nest_record(5))


def test_collection_over_limits_of_count_fails() -> None:
    """A collection has at most 64 labels and a type; all together at most 1,024 messages."""
    full = Collection({str(number): Record(0, b"") for number in range(64)}, "urn:a:b")
    over = Collection({str(number): Record(0, b"") for number in range(65)})
    entries: dict[int | str, Cmw] = {str(number): full for number in range(15)}
    most = Collection({**entries, "a": Record(0, b""), "b": Record(0, b"")})
    for write, read in ((write_cbor, read_cbor), (write_json, read_json)):
        assert read(write(full)) == full
        with raises(UsageError, "too_many"):
            write(over)
        # 1 + 15 * 65 + 2 = 978 messages; 65 more are too many.
        assert read(write(most)) == most
        with raises(UsageError, "too_many"):
            write(Collection({**most.entries, "x": full}))
    tree = {str(number): [0, ""] for number in range(65)}
    with raises(FormatError, "too_many"):
        read_json(json.dumps(tree).encode())
    for count in (65, 66):
        with raises(FormatError, "too_many", offset=2):
            read_cbor(cbor2.dumps({number: [0, b""] for number in range(count)}))
    many = {number: {inner: [0, b""] for inner in range(64)} for number in range(16)}
    with raises(FormatError, "too_many") as caught:
        read_cbor(cbor2.dumps(many))
    assert caught.value.offset is not None
    assert caught.value.offset > 1024 * 3  # far after the first collection


@every_case(
    ("written", "reason", "offset"),
    [
        ("80", "wrong_size", 0),
        ("8100", "wrong_size", 0),
        ("82f640", "wrong_type", 1),
        ("821a0001000040", "wrong_type", 0),
        ("826040", "wrong_value", 0),
        ("8264612f623b40", "wrong_value", 0),
        ("826161f6", "wrong_type", 3),
        ("8200f6", "wrong_type", 2),
        ("82005f4100ff", "not_canonical", 2),
        ("9f0040ff", "not_canonical", 0),
        ("82180040", "not_canonical", 1),
        ("83004000", "wrong_value", 0),
        ("8300401820", "wrong_value", 0),
        ("83004020", "wrong_type", 3),
        ("a0", "missing", 1),
        ("a1685f5f636d77635f7466322e32352e31", "missing", 1),
        ("a261618200406161820040", "duplicate", 6),
        ("a3" + 2 * "685f5f636d77635f7466322e32352e31" + "6161820040", "duplicate", 17),
        ("a2685f5f636d77635f7461306161820040", "wrong_value", 1),
        ("a2685f5f636d77635f7463312e316161820040" + "00", "trailing_data", 19),
        ("a2685f5f636d77635f748200406161820040", "wrong_type", 10),
        ("a1f6820040", "wrong_type", 1),
        ("c240", "unsupported", 0),
        ("da637401008240", "unsupported", 0),
        ("da6374013d820040", "wrong_type", 5),
        ("82004000", "trailing_data", 3),
        ("f6", "wrong_type", 0),
        ("bb00000000ffffffff", "not_canonical", 0),
        ("bbffffffffffffffff", "truncated", 0),
    ],
)
def test_read_cbor_of_malformed_message_names_reason_and_offset(
    written: str, reason: str, offset: int
) -> None:
    """Each rule of the draft and of CBOR is enforced, and the error has the offset."""
    with raises(FormatError, reason, offset=offset):
        read_cbor(bytes.fromhex(written))


@every_case(
    ("text", "reason", "part"),
    [
        ("null", "wrong_type", "record"),
        ('"a/b"', "wrong_type", "record"),
        ("[]", "wrong_size", "record"),
        ('[true,""]', "wrong_type", "media type"),
        ('[60.0,""]', "wrong_type", "media type"),
        ('[65536,""]', "wrong_type", "media type"),
        ('["#cmw-c2j-tunnel",""]', "wrong_value", "media type"),
        ('["a/b",null]', "encoding", "value"),
        ('["a/b","",0]', "wrong_value", "ind"),
        ('["a/b","",true]', "wrong_value", "ind"),
        ("{}", "missing", "collection"),
        ('{"__cmwc_t":"urn:a:b"}', "missing", "collection"),
        ('{"__cmwc_t":null,"a":[0,""]}', "wrong_value", "__cmwc_t"),
        ('{"__cmwc_t":"a b:c","a":[0,""]}', "wrong_value", "__cmwc_t"),
        ('{"__cmwc_t":"1.01","a":[0,""]}', "wrong_value", "__cmwc_t"),
        ('{"a":[0,""],"a":[0,""]}', "duplicate", "a: "),
        ('{"a":{"b":[0,"="]}}', "encoding", "'b': "),
        ('{"a":[0,NaN]}', "syntax", "NaN"),
        ("[" * 100_000, "too_deep", ""),
    ],
)
def test_read_json_of_malformed_message_names_the_part(text: str, reason: str, part: str) -> None:
    """Each rule of the draft and of JSON is enforced, and the error names the part or label."""
    with raises(FormatError, reason, part=part):
        read_json(text.encode())


@given(st.binary(max_size=30))
def test_read_json_of_other_base64_fails(value: bytes) -> None:
    """Padding, the standard alphabet, spaces and non-zero trailing bits are rejected."""
    text = to_base64url(value)
    assert from_base64url(text, "a") == value
    for other in (text + "=", text + "\n", " " + text, text + "+", text + "/", text + "\u00e9"):
        with raises(FormatError, "encoding", start="a: "):
            from_base64url(other, "a")


@every_case("text", ["A", "AB", "AAB", "A===", "AA==", "+A", "/w", "AAAAA", "A A", "é"])
def test_read_json_of_incomplete_base64url_fails(text: str) -> None:
    """A single character is not a byte, and unused bits must be zero."""
    with pytest.raises(FormatError):
        from_base64url(text, "a")


@every_case(
    "message",
    [
        Record("a", b""),
        Record("a/" + "b" * 255, b""),
        Record(-1, b""),
        Record(0, b"", 0),
        Record(0, b"", 32),
        Collection({}),
        Collection({"a": Record(0, b"")}, "no type"),
        Collection({record.KIND: Record(0, b"")}),
    ],
)
def test_write_of_invalid_message_is_usage_error(message: Cmw) -> None:
    """A message that the reader would reject is a usage error."""
    for write in (write_cbor, write_json):
        with pytest.raises(UsageError):
            write(message)


def test_write_json_of_integer_label_is_usage_error() -> None:
    """Integer labels exist in CBOR only."""
    message = Collection(untyped({1: Record(0, b"")}))
    assert read_cbor(write_cbor(message)) == message
    with raises(UsageError, "wrong_type"):
        write_json(message)
