"""V0 evidence: byte for byte what agents write, and nothing else is read."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation.wire import v0_scale
from attestkit.attestation.wire.evidence_parts import Evidence, Tdx
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import WireEvent
from tests.attestation.samples import (
    ENCODINGS,
    EVENTS,
    FIXTURE,
    KINDS,
    POD,
    STACK,
    V2,
    cuts,
    mutations,
    refused,
)
from tests.vectors import needs_shared

ENCODED = [v0_scale.encode(evidence) for evidence in KINDS]


@pytest.mark.parametrize("evidence", KINDS)
def test_every_platform_survives(evidence: Evidence) -> None:
    """Evidence of every platform is read back as it was written."""
    assert v0_scale.decode(v0_scale.encode(evidence)) == evidence


def test_the_layout_is_as_documented() -> None:
    """Version, platform, quote, log, runtime events, report data and configuration in order."""
    event = WireEvent(1, 2, b"\xaa", "n", b"\xbb\xcc")
    evidence = Evidence(Tdx(b"QQ", (event,)), STACK._replace(report_data=bytes(64)))
    assert v0_scale.encode(evidence) == (
        b"\0\0" + b"\x08QQ"
        b"\x04" + b"\1\0\0\0\2\0\0\0" + b"\x04\xaa" + b"\x04n" + b"\x08\xbb\xcc"
        b"\x04" + b"\x18app-id" + b"\x08\xde\xad" + bytes(64) + b"\x50" + STACK.config.encode()
    )


@needs_shared
@pytest.mark.parametrize("case", [c for c in ENCODINGS if c["v0_scale"]], ids=lambda c: c["name"])
def test_vectors_are_written_byte_for_byte(case: dict[str, str]) -> None:
    """The synthetic evidence of every platform is read and written again unchanged."""
    encoded = bytes.fromhex(case["v0_scale"])
    assert v0_scale.encode(v0_scale.decode(encoded)) == encoded


@needs_shared
@pytest.mark.parametrize("case", [c for c in ENCODINGS if c["v0_scale"]], ids=lambda c: c["name"])
def test_vectors_cut_anywhere_are_refused(case: dict[str, str]) -> None:
    """No prefix of evidence is evidence; the error has the documented start."""
    for cut in cuts(bytes.fromhex(case["v0_scale"])):
        with pytest.raises(FormatError, match=r"^Failed to decode legacy VersionedAttestation"):
            v0_scale.decode(cut)


@needs_shared
def test_the_fixture_cut_anywhere_is_refused() -> None:
    """The capture cut at every length is refused, and the error's offset is inside of it."""
    for cut in cuts(FIXTURE):
        with pytest.raises(FormatError) as caught:
            v0_scale.decode(cut)
        assert caught.value.offset is not None
        assert caught.value.offset <= max(len(cut), 1)


@pytest.mark.parametrize("index", [5, 255])
def test_unknown_platforms_are_refused(index: int) -> None:
    """There are five platforms; the error names the byte."""
    with pytest.raises(FormatError, match=f"unknown platform {index}") as caught:
        v0_scale.decode(bytes([0, index]) + bytes(200))
    assert caught.value.offset == 1


def test_unknown_tpm_platforms_are_refused() -> None:
    """The platform of a TPM quote is one of four."""
    encoded = ENCODED[1]
    at = encoded.index(b"certificate") + len(b"certificate")
    with pytest.raises(FormatError, match="unknown TPM platform 4"):
        v0_scale.decode(encoded[:at] + b"\4" + encoded[at + 1 :])


def test_trailing_bytes_are_counted() -> None:
    """Bytes behind the evidence are refused with their number."""
    with pytest.raises(FormatError) as caught:
        v0_scale.decode(ENCODED[0] + bytes(3))
    assert str(caught.value) == "Trailing bytes after legacy VersionedAttestation: 3"


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        (POD, "dstack-pod attestation cannot be represented by the legacy schema"),
        (V2, "non-V1 runtime events cannot be represented by the legacy schema"),
        (
            Evidence(KINDS[0].platform, STACK._replace(report_data=bytes(63))),
            "stack.report_data must be 64 bytes",
        ),
    ],
)
def test_what_scale_cannot_carry_is_refused(evidence: Evidence, text: str) -> None:
    """Pods, version 2 events and odd report data have no V0 form."""
    with pytest.raises(UsageError) as caught:
        v0_scale.encode(evidence)
    assert str(caught.value) == text


def test_a_version_2_runtime_event_alone_is_refused() -> None:
    """The version counts in the runtime events as well as in the log."""
    events = (STACK.runtime_events[0]._replace(version=2),)
    with pytest.raises(UsageError, match="non-V1"):
        v0_scale.encode(Evidence(KINDS[2].platform, STACK._replace(runtime_events=events)))


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=200).map(lambda tail: b"\0" + tail))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever follows the version, only FormatError comes out."""
    refused(v0_scale.decode, data)


@settings(deadline=None)  # machines are busy
@given(mutations(*[encoded[:2000] for encoded in ENCODED]))
def test_what_is_read_is_written_again(data: bytes) -> None:
    """There is one encoding per evidence: mutated bytes that can be read come back unchanged."""
    data = b"\0" + data[1:]
    if not refused(v0_scale.decode, data):
        assert v0_scale.encode(v0_scale.decode(data)) == data


LONG_NAME = WireEvent(3, 0xFFFFFFFF, bytes(48), "n" * 70, b"")
TD = v0_scale.encode(Evidence(Tdx(b"Q", (*EVENTS, LONG_NAME)), STACK))


def read(data: bytes) -> object:
    """Return the evidence in `data`, or what the error says and where."""
    try:
        return v0_scale.decode(data)
    except FormatError as error:
        return error.message, error.offset


@settings(deadline=None)  # machines are busy
@given(mutations(TD, *ENCODED[:2]))
def test_events_are_read_alike_in_one_step_and_field_by_field(data: bytes) -> None:
    """The short way that most events take gives what the long one gives, errors included."""
    found = read(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(v0_scale, "_EVENT_HEAD", struct.Struct(f"{len(data) + 1}x"))  # never fits
        assert read(data) == found
