"""The wrapper itself: what draft-ietf-rats-msg-wrap says, in CBOR and JSON, and nothing else."""

import json
from collections.abc import Callable
from typing import Final

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.attestation.cmw import record
from attestkit.attestation.cmw.json_form import from_base64url, read_json, to_base64url, write_json
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
from tests.attestation.samples import cuts, mutations, refused
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
def test_in_cbor_it_comes_back(message: Cmw) -> None:
    """What is written is read, labels that are numbers included; and it is deterministic."""
    written = write_cbor(message)
    assert read_cbor(written) == message
    assert write_cbor(read_cbor(written)) == written


@given(messages(NAMES))
def test_in_json_it_comes_back(message: Cmw) -> None:
    """What is written is read, and JSON says what CBOR does."""
    assert read_json(write_json(message)) == message == read_cbor(write_cbor(message))


@given(messages(NAMES))
def test_another_reader_agrees(message: Cmw) -> None:
    """Another CBOR library, and Python's JSON, find arrays and maps as the draft has them."""

    def plain(part: Cmw, write: Callable[[bytes], object]) -> object:
        if isinstance(part, Record):
            ind = [] if part.ind is None else [part.ind]
            return [part.media_type, write(part.value), *ind]
        found = {name: plain(entry, write) for name, entry in part.entries.items()}
        return found if part.kind is None else {**found, "__cmwc_t": part.kind}

    assert cbor2.loads(write_cbor(message)) == plain(message, bytes)
    assert json.loads(write_json(message)) == plain(message, to_base64url)


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


@pytest.mark.parametrize(("written", "message"), KNOWN)
def test_known_bytes(written: str, message: Cmw) -> None:
    """Records, tags and collections in CBOR, written out by hand."""
    assert read_cbor(bytes.fromhex(written)) == message
    for cut in cuts(bytes.fromhex(written)):
        with pytest.raises(FormatError) as caught:
            read_cbor(cut)
        assert caught.value.offset is not None


def test_known_json() -> None:
    """A collection in JSON, written out by hand; no prefix of it is one."""
    text = b'{"__cmwc_t":"urn:a:b","a":["text/plain","aGk",4],"b":{"c":[60,"9g"]}}'
    inner = Collection({"c": Record(60, b"\xf6")})
    message = Collection({"a": Record("text/plain", b"hi", 4), "b": inner}, "urn:a:b")
    assert read_json(text) == message
    assert write_json(message) == text
    for cut in cuts(text):
        with pytest.raises(FormatError):
            read_json(cut)


@pytest.mark.parametrize(
    ("number", "tag"),
    [(0, 1668546817), (60, 0x6374013D), (254, 0x637401FF), (255, 0x63740201), (65_024, 1668612095)],
)
def test_tags_of_content_formats(number: int, tag: int) -> None:
    """RFC 9277: 1668546817 to 1668612095, 255 to a row, so that no byte is zero."""
    assert tag_number(number) == tag
    assert content_format(tag) == number
    assert cbor2.loads(write_tag(number, b"a")) == cbor2.CBORTag(tag, b"a")


def test_every_tag_is_one_content_format() -> None:
    """Both ways agree on all 65,025; what lies between and around stands for none."""
    assert [content_format(tag_number(number)) for number in range(65_025)] == [*range(65_025)]
    for tag in (0, 55_799, 0x63740100, 0x63740200, 0x637502, 0x63750001, 2**32):
        assert content_format(tag) is None
    for number in (-1, 65_025):
        with pytest.raises(UsageError, match="has no CBOR tag"):
            tag_number(number)


def nested(levels: int) -> Cmw:
    """Return a record within so many collections."""
    message: Cmw = Record(0, b"")
    for _ in range(levels):
        message = Collection({"a": message})
    return message


def in_cbor(levels: int) -> bytes:
    """Return the same in CBOR, however deep."""
    return bytes.fromhex("a16161") * levels + bytes.fromhex("820040")


def in_json(levels: int) -> bytes:
    """Return the same in JSON, however deep."""
    return b'{"a":' * levels + b'[0,""]' + b"}" * levels


def test_collections_nest_four_deep() -> None:
    """Four levels are read and written, a fifth is refused by all."""
    assert read_cbor(in_cbor(4)) == nested(4) == read_json(in_json(4))
    assert write_cbor(nested(4)) == in_cbor(4)
    for deep in (5, 150, 100_000):
        with pytest.raises(FormatError, match="nest deeper"):
            read_cbor(in_cbor(deep))
        with pytest.raises(FormatError, match=r"nests? deeper"):
            read_json(in_json(deep))
    for write in (write_cbor, write_json):
        with pytest.raises(UsageError, match="nest deeper than 4"):
            write(nested(5))


def test_counts_are_bounded() -> None:
    """64 labels and a type in one collection, 1,024 messages in all of them."""
    full = Collection({str(number): Record(0, b"") for number in range(64)}, "urn:a:b")
    over = Collection({str(number): Record(0, b"") for number in range(65)})
    entries: dict[int | str, Cmw] = {str(number): full for number in range(15)}
    most = Collection({**entries, "a": Record(0, b""), "b": Record(0, b"")})
    for write, read in ((write_cbor, read_cbor), (write_json, read_json)):
        assert read(write(full)) == full
        with pytest.raises(UsageError, match="65 entries"):
            write(over)
        # 1 + 15 * 65 + 2 = 978 messages; 65 more are too many.
        assert read(write(most)) == most
        with pytest.raises(UsageError, match="over 1024 messages"):
            write(Collection({**most.entries, "x": full}))
    tree = {str(number): [0, ""] for number in range(65)}
    with pytest.raises(FormatError, match="65 entries"):
        read_json(json.dumps(tree).encode())
    with pytest.raises(FormatError, match="65 entries"):
        read_cbor(cbor2.dumps({number: [0, b""] for number in range(65)}))
    with pytest.raises(FormatError, match="over 64 entries"):
        read_cbor(cbor2.dumps({number: [0, b""] for number in range(66)}))
    many = {number: {inner: [0, b""] for inner in range(64)} for number in range(16)}
    with pytest.raises(FormatError, match="over 1024 messages"):
        read_cbor(cbor2.dumps(many))


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("80", "2 or 3 items, not 0"),
        ("8100", "2 or 3 items, not 1"),
        ("8400400100", "2 or 3 items, not 4"),
        ("82f640", "no number or text"),
        ("822040", "no media type or CoAP"),
        ("821a0001000040", "no media type or CoAP"),
        ("826040", "'' is no media type"),
        ("82616140", "'a' is no media type"),
        ("8264612f623b40", "is no media type"),
        ("826161f6", "no byte string"),
        ("82006161", "no byte string"),
        ("8200f6", "no byte string"),
        ("82005f4100ff", "indefinite"),
        ("9f0040ff", "indefinite"),
        ("82180040", "shortest"),
        ("83004000", "ind is not"),
        ("8300401820", "ind is not"),
        ("830040f6", "no unsigned"),
        ("83004020", "no unsigned"),
        ("a0", "0 entries"),
        ("a1685f5f636d77635f7466322e32352e31", "0 entries"),
        ("a261618200406161820040", "'a' occurs twice"),
        ("a3" + 2 * "685f5f636d77635f7466322e32352e31" + "6161820040", "'__cmwc_t' occurs twice"),
        ("a2685f5f636d77635f74613061618200" + "40", "no URI or OID"),
        ("a2685f5f636d77635f7463312e3161618200" + "40" + "00", "bytes behind"),
        ("a2685f5f636d77635f748200406161820040", "no text"),
        ("a1f6820040", "no number or text"),
        ("a14161820040", "no number or text"),
        ("a16161f6", "no map or array"),
        ("c240", "stands for no Content-Format"),
        ("d9d9f7820040", "stands for no Content-Format"),
        ("da637401008240", "stands for no Content-Format"),
        ("da6374013d820040", "no byte string"),
        ("82004000", "1 bytes behind the CMW"),
        ("f6", "no map or array"),
        ("bb00000000ffffffff", "shortest"),
        ("bbffffffffffffffff", "items wanted"),
    ],
)
def test_malformed_cbor_is_refused(written: str, text: str) -> None:
    """Each with an offset within what was given."""
    with pytest.raises(FormatError, match=text) as caught:
        read_cbor(bytes.fromhex(written))
    assert caught.value.offset is not None
    assert caught.value.offset <= len(written) // 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("null", "array of 2 or 3"),
        ("7", "array of 2 or 3"),
        ('"a/b"', "array of 2 or 3"),
        ("[]", "array of 2 or 3"),
        ('["a/b","",4,4]', "array of 2 or 3"),
        ('[true,""]', "no media type or CoAP"),
        ('[60.0,""]', "no media type or CoAP"),
        ('[65536,""]', "no media type or CoAP"),
        ('[null,""]', "no media type or CoAP"),
        ('["#cmw-c2j-tunnel",""]', "is no media type"),
        ('["a/b",null]', "base64url"),
        ('["a/b","",0]', "ind is not"),
        ('["a/b","",32]', "ind is not"),
        ('["a/b","",true]', "ind is not"),
        ('["a/b","",null]', "ind is null"),
        ("{}", "0 entries"),
        ('{"__cmwc_t":"urn:a:b"}', "0 entries"),
        ('{"__cmwc_t":null,"a":[0,""]}', "no URI or OID"),
        ('{"__cmwc_t":"a b:c","a":[0,""]}', "no URI or OID"),
        ('{"__cmwc_t":"1.01","a":[0,""]}', "no URI or OID"),
        ('{"a":[0,""],"a":[0,""]}', "a: occurs twice"),
        ('{"a":{"b":[0,"="]}}', "'b': the value"),
        ('{"a":[0,NaN]}', "NaN"),
        ("[" * 100_000, "deeper"),
    ],
)
def test_malformed_json_is_refused(text: str, said: str) -> None:
    """Each with what is wrong, and the label where one is."""
    with pytest.raises(FormatError, match=said):
        read_json(text.encode())


@given(st.binary(max_size=30))
def test_base64url_has_one_spelling(value: bytes) -> None:
    """Padding, the standard alphabet, spaces, and bits behind the last byte are refused."""
    text = to_base64url(value)
    assert from_base64url(text, "a") == value
    for other in (text + "=", text + "\n", " " + text, text + "+", text + "/", text + "\u00e9"):
        with pytest.raises(FormatError, match="a: the value is no base64url"):
            from_base64url(other, "a")


@pytest.mark.parametrize(
    "text", ["A", "AB", "AAB", "A===", "AA==", "+A", "/w", "AAAAA", "A A", "é"]
)
def test_what_is_no_base64url(text: str) -> None:
    """One character is no byte, and bits that nobody would miss must be zero."""
    with pytest.raises(FormatError):
        from_base64url(text, "a")


@given(mutations(*(bytes.fromhex(written) for written, _ in KNOWN)) | st.binary(max_size=60))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    """No other error, and what is read can be written and read again."""
    if not refused(read_cbor, data):
        assert read_cbor(write_cbor(read_cbor(data))) == read_cbor(data)


@pytest.mark.parametrize(
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
def test_what_nobody_would_read_is_not_written(message: Cmw) -> None:
    """It is the caller's mistake."""
    for write in (write_cbor, write_json):
        with pytest.raises(UsageError):
            write(message)


def test_json_has_no_numbers_for_labels() -> None:
    """What CBOR can say and JSON cannot is the caller's mistake."""
    message = Collection(untyped({1: Record(0, b"")}))
    assert read_cbor(write_cbor(message)) == message
    with pytest.raises(UsageError, match="labels in JSON are text"):
        write_json(message)
