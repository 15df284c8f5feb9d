"""V1 evidence in CBOR is deterministic, tagged, and read strictly."""

from typing import Any

import cbor2
import pytest

from attestkit._formats.cbor import CborReader, read_value
from attestkit.attestation.wire import v1_cbor, v1_document, v1_structs
from attestkit.attestation.wire.evidence_parts import Evidence, Tdx
from attestkit.errors import FormatError
from tests.attestation.samples import EVENTS, KINDS, POD, STACK, V2, mutations, prefixes
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import thorough
from tests.untyped import untyped

EVIDENCE = [*KINDS, V2, POD]
ENCODED = [v1_cbor.encode_evidence(evidence) for evidence in EVIDENCE]
MARK = b"\xd9\xd9\xf7"


@every_case("evidence", EVIDENCE)
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


@every_case(
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


@pytest.mark.slow
def test_v1_cbor_limits_unknown_values() -> None:
    """At most 1,048,576 unknown values are skipped."""
    deep = b"\x81" * 1_100_000 + b"\0"
    with raises(FormatError, "too_many", offset=12 + 1_048_576):
        v1_cbor.decode_evidence(MARK + b"\xa4\x67unknown" + deep + ENCODED[2][4:])


def read_result(data: bytes, *, general: bool = False) -> object:
    """Return evidence, or reason, offset and message of the error; `general`: without fast path."""
    try:
        if general and data.startswith(MARK):
            return v1_document.decode_document(CborReader(data, at=3))
        return v1_cbor.decode_evidence(data)
    except FormatError as error:
        return error.reason, error.offset, str(error)


FAST = [KINDS[0], KINDS[3], V2, POD]


@thorough(mutations(*map(v1_cbor.encode_evidence, FAST)), few=300, many=3000)
def test_v1_cbor_fast_path_equals_general_reader(data: bytes) -> None:
    """The fast path gives the result of the general reader, including errors."""
    assert read_result(data) == read_result(data, general=True)


@every_case("evidence", FAST)
def test_v1_cbor_of_td_and_snp_does_not_reach_general_reader(evidence: Evidence) -> None:
    """Evidence of TDX and SEV-SNP is read by the fast path, with keys in any order."""
    encoded = v1_cbor.encode_evidence(evidence)
    reverse = MARK + cbor2.dumps(dict(reversed(cbor2.loads(encoded[3:]).items())))
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(v1_document, "decode_document")
        assert v1_cbor.decode_evidence(encoded) == evidence
        assert v1_cbor.decode_evidence(reverse) == evidence


FIELDS = [
    ("version",),
    ("platform",),
    ("platform", "kind"),
    ("platform", "data"),
    ("platform", "data", "quote"),
    ("platform", "data", "event_log"),
    ("platform", "data", "event_log", 0),
    *[("platform", "data", "event_log", 0, name) for name in ("imr", "event_type", "digest")],
    *[("platform", "data", "event_log", 0, name) for name in ("event", "event_payload", "version")],
    ("platform", "data", "event_log", 0, "preimage"),
    ("stack", "kind"),
    ("stack", "data", "report_data"),
    ("stack", "data", "runtime_events", 0, "payload"),
    ("stack", "data", "runtime_events", 0, "version"),
    ("stack", "data", "config"),
    ("stack", "data", "other"),
]
MISSING = object()
VALUES: list[Any] = [
    MISSING,
    None,
    True,
    False,
    0,
    1,
    2,
    3,
    -1,
    2**32,
    2**64 - 1,
    1.0,
    1.5,
    "",
    "YQ==",
]
VALUES += [
    "tdx",
    "sev-snp",
    "dstack",
    "dstack-pod",
    b"",
    b"YQ==",
    [],
    {},
    [1],
    [b""],
    {"a": 1},
    {1: 1},
    {b"imr": 1},
]


SNP_FIELDS: list[tuple[Any, ...]] = [
    ("platform", "data", name) for name in ("report", "cert_chain", "mr_config")
]
SNP_FIELDS += [("platform", "data", "cert_chain", 0), ("platform", "kind")]
POD_FIELDS = [("stack", "data", "report_data_payload"), ("stack", "kind")]


@every_case(
    ("evidence", "path"),
    [
        *[(KINDS[0], path) for path in FIELDS],
        *[(KINDS[3], path) for path in SNP_FIELDS],
        *[(POD, path) for path in POD_FIELDS],
    ],
)
def test_v1_cbor_with_other_values_equals_general_reader(
    evidence: Evidence, path: tuple[Any, ...]
) -> None:
    """Each field with values of each type gives the result of the general reader."""
    for value in VALUES:
        document = inner = untyped(cbor2.loads(v1_cbor.encode_evidence(evidence)[3:]))
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = value
        if value is MISSING:
            del inner[path[-1]]
        encoded = MARK + cbor2.dumps(document)
        assert read_result(encoded) == read_result(encoded, general=True), value


UNUSUAL = [
    ("63696d7200", "63696d721800"),  # an overlong number
    ("63696d7200", "7803696d7200"),  # an overlong string
    ("a563696d7200", "a663696d720163696d7200"),  # a duplicate key
    ("a563696d7200", "bf63696d7200"),  # an indefinite length
    ("a563696d7200", "a667756e6b6e6f776e8063696d7200"),  # an unknown key
    ("a563696d7200", "a667756e6b6e6f776ec18063696d7200"),  # an unknown key with a tag
    ("646b696e6463746478", "646b696e64c163746478"),  # a tagged text
    ("61637069", "eda08069"),  # a lone surrogate
]


@every_case(("common", "variant"), UNUSUAL)
def test_v1_cbor_unusual_encoding_uses_general_reader(common: str, variant: str) -> None:
    """Other encodings, unknown keys and duplicate keys are handled by the strict reader."""
    assert ENCODED[0].count(bytes.fromhex(common)) > 0
    data = ENCODED[0].replace(bytes.fromhex(common), bytes.fromhex(variant), 1)
    assert v1_structs.decode_cbor(data, 3) is None
    assert read_result(data) == read_result(data, general=True)


def test_v1_cbor_over_value_limit_uses_general_reader() -> None:
    """A log of more than 65,536 values is read, without a tree of all of them."""
    many = Evidence(Tdx(b"", EVENTS * 3500), STACK)
    encoded = v1_cbor.encode_evidence(many)
    assert v1_structs.decode_cbor(encoded, 3) is None
    assert v1_cbor.decode_evidence(encoded) == many
