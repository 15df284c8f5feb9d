"""V0 evidence and its SCALE values are written as agents write them, and read strictly."""

import struct

import pytest
from hypothesis import given, settings

from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire import scale, v0_scale
from attestkit.attestation.wire.evidence_parts import Evidence, Tdx
from attestkit.attestation.wire.scale import ScaleReader
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import WireEvent
from tests.attestation.samples import (
    ENCODINGS,
    EVENTS,
    KINDS,
    POD,
    STACK,
    V2,
    mutations,
    prefixes,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import needs_shared

ENCODED = [v0_scale.encode_evidence(evidence) for evidence in KINDS]


@every_case("evidence", KINDS)
def test_v0_of_every_platform_round_trips(evidence: Evidence) -> None:
    """Evidence of every platform is read back equal."""
    assert v0_scale.decode_evidence(v0_scale.encode_evidence(evidence)) == evidence


def test_v0_layout_matches_documentation() -> None:
    """Version, platform, quote, log, events, report data and configuration are in order."""
    event = WireEvent(1, 2, b"\xaa", "n", b"\xbb\xcc")
    evidence = Evidence(Tdx(b"QQ", (event,)), STACK._replace(report_data=bytes(64)))
    assert v0_scale.encode_evidence(evidence) == (
        b"\0\0" + b"\x08QQ"
        b"\x04" + b"\1\0\0\0\2\0\0\0" + b"\x04\xaa" + b"\x04n" + b"\x08\xbb\xcc"
        b"\x04" + b"\x18app-id" + b"\x08\xde\xad" + bytes(64) + b"\x50" + STACK.config.encode()
    )


@needs_shared
@pytest.mark.parametrize("case", [c for c in ENCODINGS if c["v0_scale"]], ids=lambda c: c["name"])
def test_v0_vectors_truncated_fail(case: dict[str, str]) -> None:
    """No proper prefix is evidence; the error starts with the documented text."""
    for cut in prefixes(bytes.fromhex(case["v0_scale"])):
        with raises(FormatError, "truncated", start="Failed to decode legacy VersionedAttestation"):
            v0_scale.decode_evidence(cut)


@pytest.mark.parametrize("index", [5, 255])
def test_v0_of_unknown_platform_fails(index: int) -> None:
    """There are five platforms; the error names the byte."""
    with raises(FormatError, "unsupported", offset=1):
        v0_scale.decode_evidence(bytes([0, index]) + bytes(200))


def test_v0_of_unknown_tpm_platform_fails() -> None:
    """The platform of a TPM quote is one of four."""
    encoded = ENCODED[1]
    at = encoded.index(b"certificate") + len(b"certificate")
    with raises(FormatError, "wrong_value", offset=at):
        v0_scale.decode_evidence(encoded[:at] + b"\4" + encoded[at + 1 :])


def test_v0_with_trailing_bytes_fails_naming_their_number() -> None:
    """Trailing bytes are rejected with their number."""
    with raises(
        FormatError, "trailing_data", text="Trailing bytes after legacy VersionedAttestation: 3"
    ):
        v0_scale.decode_evidence(ENCODED[0] + bytes(3))


@pytest.mark.parametrize(
    ("evidence", "reason", "text"),
    [
        (
            POD,
            "not_applicable",
            "dstack-pod attestation cannot be represented by the legacy schema",
        ),
        (
            V2,
            "not_applicable",
            "non-V1 runtime events cannot be represented by the legacy schema",
        ),
        (
            Evidence(KINDS[0].platform, STACK._replace(report_data=bytes(63))),
            "wrong_size",
            "stack.report_data: must be 64 bytes, not 63",
        ),
    ],
)
def test_v0_of_unsupported_evidence_is_usage_error(
    evidence: Evidence, reason: str, text: str
) -> None:
    """Pods, version 2 events and report data of other sizes have no V0 encoding."""
    with raises(UsageError, reason, text=text):
        v0_scale.encode_evidence(evidence)


def test_v0_of_version_2_runtime_event_is_usage_error() -> None:
    """The version counts in the runtime events as in the log."""
    events = (STACK.runtime_events[0]._replace(version=2),)
    with raises(UsageError, "not_applicable"):
        v0_scale.encode_evidence(Evidence(KINDS[2].platform, STACK._replace(runtime_events=events)))


LONG_NAME = WireEvent(3, 0xFFFFFFFF, bytes(48), "n" * 70, b"")
TD = v0_scale.encode_evidence(Evidence(Tdx(b"Q", (*EVENTS, LONG_NAME)), STACK))


def read_result(data: bytes) -> object:
    """Return the evidence in `data`, or reason and offset of the error."""
    try:
        return v0_scale.decode_evidence(data)
    except FormatError as error:
        return error.message, error.offset


@settings(deadline=None)  # shared machines are slow
@given(mutations(TD, *ENCODED[:2]))
def test_v0_fast_path_of_events_equals_field_by_field(data: bytes) -> None:
    """The fast path for events gives the result of the general one, including errors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "decode_scale_td", lambda _: None)
        found = read_result(data)
        patch.setattr(v0_scale, "_EVENT_HEAD", struct.Struct(f"{len(data) + 1}x"))  # never fits
        assert read_result(data) == found


COMPACT = [
    (0, "00"),
    (1, "04"),
    (63, "fc"),
    (64, "0101"),
    (16_383, "fdff"),
    (16_384, "02000100"),
    (2**30 - 1, "feffffff"),
    (2**30, "0300000040"),
    (2**32 - 1, "03ffffffff"),
]


@every_case(("value", "encoded"), COMPACT)
def test_compact_number_round_trips_in_shortest_form(value: int, encoded: str) -> None:
    """A compact number is written in its shortest form and read back."""
    assert scale.encode_compact(value).hex() == encoded
    assert ScaleReader(bytes.fromhex(encoded)).compact() == value


LONGER = ["0100", "fd00", "02000000", "feff0000", "0300000000", "03ffffff3f"]


@every_case(
    ("encoded", "reason"),
    [
        *((encoded, "not_canonical") for encoded in LONGER),
        ("070000000001", "wrong_value"),
        ("ff", "wrong_value"),
    ],
)
def test_compact_number_over_long_or_too_large_fails(encoded: str, reason: str) -> None:
    """An overlong number, or one of 2**32 or more, is rejected at its start."""
    with raises(FormatError, reason, offset=0):
        ScaleReader(bytes.fromhex(encoded)).compact()


@every_case("encoded", ["", "01", "0200", "020000", "03", "03000000"])
def test_compact_number_truncated_fails(encoded: str) -> None:
    """A truncated number is rejected."""
    with raises(FormatError, "truncated", offset=min(len(encoded) // 2, 1)):
        ScaleReader(bytes.fromhex(encoded)).compact()


def test_scale_values_round_trip_in_order() -> None:
    """Values are read in the order in which they were written."""
    document = b"".join(
        [
            b"\x07",
            scale.encode_u32(0x01020304),
            scale.encode_blob(b"abc"),
            scale.encode_text("grün"),
            scale.encode_vector([scale.encode_u32(1), scale.encode_u32(2)]),
        ]
    )
    reader = ScaleReader(document)
    assert (reader.u8(), reader.u32()) == (7, 0x01020304)
    assert (reader.blob(), reader.text()) == (b"abc", "grün")
    assert reader.vector(ScaleReader.u32) == (1, 2)
    assert reader.remaining == 0


def test_scale_text_of_invalid_utf8_fails() -> None:
    """The error names the first invalid byte."""
    with raises(FormatError, "encoding", offset=3):
        ScaleReader(scale.encode_blob(b"ab\xff")).text()


def test_scale_vector_count_over_remaining_bytes_fails() -> None:
    """A count larger than the remaining bytes is rejected before any item is read."""
    reader = ScaleReader(scale.encode_compact(2**32 - 1) + bytes(8))
    with raises(FormatError, "truncated", offset=0):
        reader.vector(ScaleReader.u8)


def test_scale_vector_over_65536_items_fails() -> None:
    """65,536 items are read, one more is not."""
    reader = ScaleReader(scale.encode_compact(65_536) + bytes(65_536))
    assert len(reader.vector(ScaleReader.u8)) == 65_536
    reader = ScaleReader(scale.encode_compact(65_537) + bytes(65_537))
    with raises(FormatError, "too_many", offset=0):
        reader.vector(ScaleReader.u8)


@pytest.mark.parametrize("value", [-1, 2**32])
def test_scale_write_of_out_of_range_number_is_usage_error(value: int) -> None:
    """A number out of its range cannot be written."""
    with raises(UsageError, "out_of_range"):
        scale.encode_u32(value)
