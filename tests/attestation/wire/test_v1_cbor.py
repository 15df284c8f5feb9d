"""V1 evidence in CBOR is deterministic, tagged, and read strictly."""

import cbor2
import pytest

from attestkit._formats.cbor import read_value
from attestkit.attestation.wire import v1_cbor, v1_document
from attestkit.attestation.wire.evidence_parts import Evidence
from attestkit.errors import FormatError
from tests.attestation.samples import KINDS, POD, V2, prefixes
from tests.raising import raises

EVIDENCE = [*KINDS, V2, POD]
ENCODED = [v1_cbor.encode_evidence(evidence) for evidence in EVIDENCE]
MARK = b"\xd9\xd9\xf7"


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_v1_cbor_is_readable_by_other_decoders(evidence: Evidence) -> None:
    """cbor2 decodes the V1 tree behind the tag, with byte strings for bytes."""
    encoded = v1_cbor.encode_evidence(evidence)
    assert encoded.startswith(MARK)
    assert cbor2.loads(encoded[3:]) == v1_document.build_tree(evidence)


def test_v1_cbor_keys_follow_rfc8949_order() -> None:
    """The example of RFC 8949, 4.2.1, which differs from RFC 7049; also inside an array."""
    keys: list[int | str] = [10, 100, -1, "z", "aa"]
    entries = "0af6 1864f6 20f6 617af6 626161f6"
    for order in (keys, keys[::-1], ["aa", 100, "z", -1, 10]):
        written = v1_cbor.encode_cbor([dict.fromkeys(order)])
        assert written == bytes.fromhex("81a5" + entries)


@pytest.mark.parametrize("encoded", [encoded for encoded in ENCODED if len(encoded) < 5000])
def test_v1_cbor_truncated_fails(encoded: bytes) -> None:
    """No proper prefix of evidence is evidence."""
    for cut in prefixes(encoded):
        with raises(FormatError, "truncated" if len(cut) >= len(MARK) else "unrecognized"):
            v1_cbor.decode_evidence(cut)


def test_v1_cbor_with_trailing_bytes_fails_naming_their_number() -> None:
    """Trailing bytes are rejected with their number."""
    with raises(FormatError, "trailing_data", text="trailing bytes after attestation CBOR: 2"):
        v1_cbor.decode_evidence(ENCODED[0] + bytes(2))


def test_v1_cbor_of_other_version_fails() -> None:
    """Only version 1 is supported."""
    document = cbor2.loads(ENCODED[0][3:]) | {"version": 300}
    with raises(
        FormatError,
        "unsupported_version",
        text="unsupported attestation version: expected 1, got 300",
    ):
        v1_cbor.decode_evidence(MARK + cbor2.dumps(document))


@pytest.mark.parametrize(
    ("encoded", "reason", "offset"),
    [
        ("bf", "not_canonical", 3),
        ("b80361", "not_canonical", 3),
        ("a0", "missing", 3),
        ("80", "missing", 3),
        ("a16776657273696f6e20", "wrong_type", 12),
        ("a168706c6174666f726d01", "wrong_type", 13),
        ("a1656f74686572c1", "truncated", 11),
        ("c0a0", "wrong_type", 3),
        ("9bffffffffffffffff", "truncated", 3),
        ("a161ff", "encoding", 4),
        ("a141", "wrong_type", 4),
    ],
)
def test_decode_of_malformed_cbor_names_reason_and_offset(
    encoded: str, reason: str, offset: int
) -> None:
    """Indefinite lengths, long heads and wrong types are rejected with an offset."""
    with raises(FormatError, reason, offset=offset):
        v1_cbor.decode_evidence(MARK + bytes.fromhex(encoded))


def test_v1_cbor_with_partial_tag_fails() -> None:
    """The first byte of the tag alone does not select the encoding."""
    with raises(FormatError, "unrecognized"):
        v1_cbor.decode_evidence(b"\xd9\xd9\xf8\xa0")


@pytest.mark.parametrize("nest", [b"\x81", b"\xa1\x61x", b"\xc1"])
def test_v1_cbor_with_deep_nesting_is_skipped_or_fails(nest: bytes) -> None:
    """A value nested deeply is skipped or rejected without recursion."""
    deep = nest * (300_000 // len(nest)) + b"\0"
    good = MARK + b"\xa4\x67unknown" + deep + ENCODED[2][4:]
    assert v1_cbor.decode_evidence(good) == KINDS[2]
    with pytest.raises(FormatError):
        read_value(deep)


def test_v1_cbor_limits_unknown_values() -> None:
    """At most 1,048,576 unknown values are skipped."""
    deep = b"\x81" * 1_100_000 + b"\0"
    with raises(FormatError, "too_many", offset=12 + 1_048_576):
        v1_cbor.decode_evidence(MARK + b"\xa4\x67unknown" + deep + ENCODED[2][4:])
