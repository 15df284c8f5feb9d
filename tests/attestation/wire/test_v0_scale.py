"""V0 evidence is written as agents write it, and read strictly."""

import struct

import pytest
from hypothesis import given, settings

from attestkit.attestation.wire import v0_scale
from attestkit.attestation.wire.evidence_parts import Evidence, Tdx
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
from tests.vectors import needs_shared

ENCODED = [v0_scale.encode_evidence(evidence) for evidence in KINDS]


@pytest.mark.parametrize("evidence", KINDS)
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
def test_v0_vectors_round_trip(case: dict[str, str]) -> None:
    """The synthetic evidence of every platform is rewritten byte for byte."""
    encoded = bytes.fromhex(case["v0_scale"])
    assert v0_scale.encode_evidence(v0_scale.decode_evidence(encoded)) == encoded


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
            "stack.report_data must be 64 bytes",
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
    found = read_result(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(v0_scale, "_EVENT_HEAD", struct.Struct(f"{len(data) + 1}x"))  # never fits
        assert read_result(data) == found
