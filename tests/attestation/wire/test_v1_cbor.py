"""CBOR evidence: deterministic, marked, and read without trusting a byte of it."""

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._formats.cbor import read_value
from attestkit.attestation.wire import v1_cbor, v1_document, v1_msgpack
from attestkit.attestation.wire.evidence_parts import Evidence
from attestkit.errors import FormatError, UsageError
from tests.attestation.samples import KINDS, POD, STACK, V2, cuts, mutations, refused

EVIDENCE = [*KINDS, V2, POD]
ENCODED = [v1_cbor.encode(evidence) for evidence in EVIDENCE]
MARK = b"\xd9\xd9\xf7"


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_every_kind_survives(evidence: Evidence) -> None:
    """Evidence of every platform and stack is read back as it was written."""
    assert v1_cbor.decode(v1_cbor.encode(evidence)) == evidence


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_it_is_plain_cbor(evidence: Evidence) -> None:
    """Another CBOR library reads the tree of V1, bytes as byte strings, behind the mark."""
    encoded = v1_cbor.encode(evidence)
    assert encoded.startswith(MARK)
    assert cbor2.loads(encoded[3:]) == v1_document.tree(evidence)


def test_keys_are_sorted() -> None:
    """The encoding is deterministic: keys stand in the order of their own encodings."""
    assert ENCODED[2].startswith(MARK + b"\xa3\x65stack\xa2\x64data\xa3\x66config")


def test_keys_are_in_the_order_of_their_bytes() -> None:
    """The example of RFC 8949, 4.2.1, whose order is not that of RFC 7049; inside a list too."""
    keys: list[int | str] = [10, 100, -1, "z", "aa"]
    entries = "0af6 1864f6 20f6 617af6 626161f6"
    for order in (keys, keys[::-1], ["aa", 100, "z", -1, 10]):
        written = v1_cbor.dump([dict.fromkeys(order)])
        assert written == bytes.fromhex("81a5" + entries)


@pytest.mark.parametrize("encoded", [encoded for encoded in ENCODED if len(encoded) < 5000])
def test_cut_anywhere_it_is_refused(encoded: bytes) -> None:
    """No prefix of evidence is evidence."""
    for cut in cuts(encoded):
        with pytest.raises(FormatError, match=r"CBOR|wire format"):
            v1_cbor.decode(cut)


def test_trailing_bytes_are_counted() -> None:
    """Bytes behind the evidence are refused with their number."""
    with pytest.raises(FormatError, match=r"^trailing bytes after attestation CBOR: 2$"):
        v1_cbor.decode(ENCODED[0] + bytes(2))


def test_another_version_is_named() -> None:
    """Only version 1 is known."""
    whole = cbor2.loads(ENCODED[0][3:]) | {"version": 300}
    with pytest.raises(
        FormatError, match=r"^unsupported attestation version: expected 1, got 300$"
    ):
        v1_cbor.decode(MARK + cbor2.dumps(whole))


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
        v1_cbor.decode(MARK + bytes.fromhex(encoded))
    assert caught.value.offset is not None


def test_the_mark_is_needed_in_full() -> None:
    """A first byte d9 alone marks nothing."""
    with pytest.raises(FormatError, match=r"^Unknown attestation wire format$"):
        v1_cbor.decode(b"\xd9\xd9\xf8\xa0")


@pytest.mark.parametrize("nest", [b"\x81", b"\xa1\x61x", b"\xc1"])
def test_deep_nesting_is_no_danger(nest: bytes) -> None:
    """A value nested a million times neither crashes nor is slow, skipped or read."""
    deep = nest * (1_000_000 // len(nest)) + b"\0"
    good = MARK + b"\xa4\x67unknown" + deep + ENCODED[2][4:]
    assert v1_cbor.decode(good) == KINDS[2]
    with pytest.raises(FormatError):
        read_value(deep)


def test_what_is_unknown_is_limited() -> None:
    """A million values are passed over, and not ten."""
    deep = b"\x81" * 1_100_000 + b"\0"
    with pytest.raises(FormatError, match="over 1048576 unknown values"):
        v1_cbor.decode(MARK + b"\xa4\x67unknown" + deep + ENCODED[2][4:])


def test_half_a_surrogate_pair_cannot_be_written() -> None:
    """Text without a UTF-8 form is the caller's mistake."""
    evidence = Evidence(KINDS[2].platform, STACK._replace(config="\ud800"))
    with pytest.raises(UsageError, match="surrogate"):
        v1_cbor.encode(evidence)


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=200).map(lambda tail: MARK + tail))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever comes, only FormatError comes out."""
    refused(v1_cbor.decode, data)


@settings(deadline=None)  # machines are busy
@given(mutations(*[encoded[:2000] for encoded in ENCODED]))
def test_mutated_evidence_is_read_or_refused(data: bytes) -> None:
    """What can be read after a mutation survives in this encoding and in msgpack."""
    if not refused(v1_cbor.decode, data):
        evidence = v1_cbor.decode(data)
        assert v1_cbor.decode(v1_cbor.encode(evidence)) == evidence
        assert v1_msgpack.decode(v1_msgpack.encode(evidence)) == evidence
