"""V1 evidence is written as agents write it; reading accepts what other producers may write."""

import sys
from typing import Any

import msgspec.msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._formats.msgpack import MsgpackReader
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire import v1_msgpack
from attestkit.attestation.wire.evidence_parts import Evidence, Tdx
from attestkit.errors import FormatError
from tests.attestation.samples import (
    KINDS,
    POD,
    STACK,
    V2,
    is_rejected,
    mutations,
    prefixes,
    v2_event,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import slow

EVIDENCE = [*KINDS, V2, POD]
ENCODED = [v1_msgpack.encode_evidence(evidence) for evidence in EVIDENCE]


def encode_changed(evidence: Evidence, *path: str | int, to: object) -> bytes:
    """Return the encoding of `evidence` with one value of its tree replaced."""
    document: Any = msgspec.msgpack.decode(v1_msgpack.encode_evidence(evidence))
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return msgspec.msgpack.encode(document)


@every_case("evidence", EVIDENCE)
def test_v1_of_every_kind_round_trips(evidence: Evidence) -> None:
    """Evidence of every platform and stack is read back equal."""
    assert v1_msgpack.decode_evidence(v1_msgpack.encode_evidence(evidence)) == evidence


@pytest.mark.parametrize("encoded", [encoded for encoded in ENCODED if len(encoded) < 5000])
def test_v1_truncated_fails(encoded: bytes) -> None:
    """No proper prefix is evidence; the error starts with the documented text."""
    for cut in prefixes(encoded):
        with raises(FormatError, "truncated", start="failed to decode attestation from msgpack"):
            v1_msgpack.decode_evidence(cut)


def test_v1_with_trailing_bytes_fails_naming_their_number() -> None:
    """Trailing bytes are rejected with their number."""
    with raises(FormatError, "trailing_data", text="trailing bytes after attestation msgpack: 3"):
        v1_msgpack.decode_evidence(ENCODED[0] + bytes(3))


def test_v1_of_other_version_fails() -> None:
    """Only version 1 is supported."""
    with raises(
        FormatError,
        "unsupported_version",
        text="unsupported attestation version: expected 1, got 2",
    ):
        v1_msgpack.decode_evidence(encode_changed(KINDS[0], "version", to=2))


def test_v1_accepts_any_key_order_and_unknown_keys() -> None:
    """Keys may have any order, and unknown keys are skipped."""

    def shuffle_keys(value: object) -> object:
        if isinstance(value, dict):
            items = [(key, shuffle_keys(item)) for key, item in reversed(value.items())]
            return {"unknown": [{"x": [None, 1.5, -7, "y", b"z"]}]} | dict(items)
        return [shuffle_keys(item) for item in value] if isinstance(value, list) else value

    for evidence, encoded in zip(EVIDENCE, ENCODED, strict=True):
        reordered = msgspec.msgpack.encode(shuffle_keys(msgspec.msgpack.decode(encoded)))
        assert reordered != encoded
        assert v1_msgpack.decode_evidence(reordered) == evidence


def test_v1_accepts_arrays_for_maps() -> None:
    """A struct may be an array of its fields in order, with trailing fields omitted."""

    def to_arrays(value: object) -> object:
        if isinstance(value, dict):
            return [to_arrays(item) for item in value.values()]
        return [to_arrays(item) for item in value] if isinstance(value, list) else value

    # The version of an event without preimage is a middle field, so these two keep their order.
    for evidence in (KINDS[0], KINDS[3], V2):
        document = msgspec.msgpack.decode(v1_msgpack.encode_evidence(evidence))
        inner = {key: to_arrays(value) for key, value in document.items()}
        assert v1_msgpack.decode_evidence(msgspec.msgpack.encode(inner)) == evidence


def test_v1_accepts_bytes_as_bin_or_numbers() -> None:
    """Every byte field is read in both representations."""

    def to_other_representation(value: object) -> object:
        if isinstance(value, bytes):
            return list(value)
        if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
            return bytes(value)
        if isinstance(value, list):
            return [to_other_representation(item) for item in value]
        return (
            {k: to_other_representation(v) for k, v in value.items()}
            if isinstance(value, dict)
            else value
        )

    for evidence, encoded in zip(EVIDENCE, ENCODED, strict=True):
        swapped = msgspec.msgpack.encode(to_other_representation(msgspec.msgpack.decode(encoded)))
        assert swapped != encoded
        assert v1_msgpack.decode_evidence(swapped) == evidence


def test_v1_event_without_digest_and_version_has_defaults() -> None:
    """A missing digest is empty, a missing version is 1."""
    document = msgspec.msgpack.decode(ENCODED[0])
    del document["platform"]["data"]["event_log"][0]["digest"]
    platform = v1_msgpack.decode_evidence(msgspec.msgpack.encode(document)).platform
    assert isinstance(platform, Tdx)
    assert platform.event_log[0].digest == b""
    assert platform.event_log[0].version == 1


EVENT = ("platform", "data", "event_log", 0)
WRONG: list[tuple[tuple[str | int, ...], object, str]] = [
    (("version",), "1", "wrong_type"),
    (("platform",), 7, "wrong_type"),
    (("platform", "kind"), "unknown", "unsupported"),
    (("platform", "data"), None, "wrong_type"),
    (("platform", "data", "quote"), "text", "wrong_type"),
    (("platform", "data", "quote"), [256], "wrong_value"),
    (("platform", "data", "quote"), [-1], "wrong_type"),
    (("platform", "data", "quote"), ["x"], "wrong_type"),
    (("platform", "data", "event_log"), [[0]], "missing"),
    ((*EVENT, "imr"), 2**32, "wrong_value"),
    ((*EVENT, "event_type"), 1.5, "wrong_type"),
    ((*EVENT, "event"), b"bytes", "wrong_type"),
    ((*EVENT, "version"), 3, "unsupported_version"),
    ((*EVENT, "preimage"), 5, "wrong_type"),
    (EVENT, [0, 10, b"", "name", b"", 1, None, "one too many"], "too_many"),
    (("stack", "kind"), "dstack-pod", "missing"),  # the payload is missing
    (("stack", "data", "config"), None, "wrong_type"),
    (("stack", "data", "runtime_events"), [{"event": "x"}], "missing"),
]


@every_case(("path", "value", "reason"), WRONG)
def test_v1_with_wrong_value_fails_naming_offset(
    path: tuple[str | int, ...], value: object, reason: str
) -> None:
    """A value of another type, out of range or missing is rejected with an offset."""
    with raises(FormatError, reason) as caught:
        v1_msgpack.decode_evidence(encode_changed(KINDS[0], *path, to=value))
    assert caught.value.offset is not None
    assert str(caught.value).startswith("failed to decode attestation from msgpack")


def test_v1_with_duplicate_key_fails() -> None:
    """Duplicate keys are rejected, because readers disagree about which one counts."""
    encoded = ENCODED[2]
    doubled = encoded.replace(b"\x83\xa7version\x01", b"\x84\xa7version\x01\xa7version\x01", 1)
    with raises(FormatError, "duplicate", offset=10):
        v1_msgpack.decode_evidence(doubled)


@pytest.mark.slow
@pytest.mark.parametrize("nest", [b"\x91", b"\x81\xa1x", b"\xdd\0\0\0\1"])
def test_v1_with_deep_nesting_in_skipped_value_is_linear(nest: bytes) -> None:
    """A value nested deeply is skipped, or rejected if incomplete, without recursion."""
    deep = nest * (300_000 // len(nest))
    for tail in (b"", b"\xc0"):
        data = b"\x84\xa7unknown" + deep + tail + ENCODED[0][1:]
        assert is_rejected(v1_msgpack.decode_evidence, data) == (tail == b"")


@pytest.mark.slow
def test_v1_limits_unknown_values() -> None:
    """At most 1,048,576 unknown values are skipped; overlong byte arrays are rejected."""
    deep = b"\x91" * 1_100_000 + b"\xc0"
    with raises(FormatError, "too_many", offset=9 + 1_048_576):
        v1_msgpack.decode_evidence(b"\x84\xa7unknown" + deep + ENCODED[0][1:])
    longer = b"\xdd" + (140_000).to_bytes(4, "big") + b"\xcd\0\1" * 140_000
    with raises(FormatError, "not_canonical"):
        MsgpackReader(longer).blob()
    assert len(MsgpackReader(b"\xdc\xff\xff" + longer[5 : 5 + 3 * 65_535]).blob()) == 65_535


def test_v1_with_count_over_remaining_bytes_fails() -> None:
    """A count larger than the remaining bytes is rejected before allocation."""
    for head in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"):
        with pytest.raises(FormatError):
            v1_msgpack.decode_evidence(
                b"\x81\xa8platform\x82\xa4kind\xa3tdx\xa4data" + head + bytes(8)
            )


def test_v1_over_65536_events_fails() -> None:
    """65,536 events are read, one more is not."""
    events = [{"event": "", "payload": b""}] * 65_536
    path = ("stack", "data", "runtime_events")
    assert (
        len(
            v1_msgpack.decode_evidence(
                encode_changed(KINDS[2], *path, to=events)
            ).stack.runtime_events
        )
        == 65_536
    )
    with raises(FormatError, "too_many"):
        v1_msgpack.decode_evidence(encode_changed(KINDS[2], *path, to=[*events, events[0]]))


def test_v1_with_truncated_number_array_fails() -> None:
    """A count that fits the bytes, but not the numbers, is rejected at the end."""
    with raises(FormatError, "truncated", offset=5):
        MsgpackReader(bytes.fromhex("93cc80cc80")).blob()


def test_v1_of_unknown_tpm_platform_fails() -> None:
    """The platform of a TPM quote is one of four names; the error cuts a long one."""
    path = ("platform", "data", "tpm_quote", "platform")
    with raises(FormatError, "wrong_value", part=f"TPM platform: unknown: '{'x' * 64}'... "):
        v1_msgpack.decode_evidence(encode_changed(KINDS[1], *path, to="x" * 1000))


def test_v1_reader_skips_every_msgpack_type() -> None:
    """Every msgpack type is skipped as one value, except the reserved byte c1."""
    values = ["c0", "c2", "c3", "7f", "e0", "cc80", "cd0100", "ce00010000", "cf" + "00" * 8]
    values += ["d0ff", "d1ffff", "d2ffffffff", "d3" + "ff" * 8, "ca00000000", "cb" + "00" * 8]
    values += ["a161", "d90161", "da000161", "db0000000161", "c40161", "c5000161", "c60000000161"]
    values += ["d40000", "d5000000", "d6" + "00" * 5, "d7" + "00" * 9, "d8" + "00" * 17]
    values += ["c7010000", "c800010000", "c9000000010000", "9101", "dc000101", "dd0000000101"]
    values += ["810101", "de00010101", "df000000010101", "90", "80"]
    for value in values:
        reader = MsgpackReader(bytes.fromhex(value))
        reader.skip()
        assert reader.at == len(value) // 2, value
    with raises(FormatError, "syntax", offset=0):
        MsgpackReader(b"\xc1").skip()


def read_result(data: bytes) -> object:
    """Return the evidence in `data`, or reason and offset of the error."""
    try:
        return v1_msgpack.decode_evidence(data)
    except FormatError as error:
        return error.message, error.offset


def read_result_step_by_step(data: bytes) -> object:
    """Return the same without the fast paths for the agents' own encoding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "decode_msgpack_td", lambda _: None)
        patch.setattr(MsgpackReader, "_canonical_ints", lambda _self, _count: None)
        return read_result(data)


MARKS = bytes([*range(200, 210), 0xCC, 0xCC, 0xCC, 5, 0xCC])
TD = v1_msgpack.encode_evidence(Evidence(Tdx(MARKS, (v2_event("a:b", b"c"),)), STACK))


@settings(deadline=None)  # shared machines are slow
@given(mutations(TD, ENCODED[0]))
def test_v1_fast_path_equals_general_reader(data: bytes) -> None:
    """The fast path gives the result of the general reader, including errors."""
    assert read_result(data) == read_result_step_by_step(data)


UNUSUAL = [
    (b"\xa3imr\x00", b"\xa3imr\xcc\x00"),  # an overlong number
    (b"\xa5event\xa9acpi-rsdp", b"\xa5event\xd9\x09acpi-rsdp"),  # an overlong string
    (b"\x85\xa3imr\x00", b"\x86\xa3imr\x01\xa3imr\x00"),  # a duplicate key
    (b"\x85\xa3imr\x00", b"\x86\xa7version\x01\xa3imr\x00"),  # an optional field, written
    (b"\x85\xa3imr\x00", b"\x86\xa7unknown\x90\xa3imr\x00"),  # an unknown key
    (b"\xa3imr\x00", b"\xa3imr\xcf\0\0\0\1\0\0\0\0"),  # 33 bits
    (b"\xa3imr\x00", b"\xa3imr\xff"),  # -1
    (b"acpi-rsdp", b"\xed\xa0\x80i-rsdp"),  # a lone surrogate
    (b"\xa4kind\xa6dstack", b"\xa4kind\xa6Dstack"),
    (b"\xabreport_data\xdc\x00\x40\x00", b"\xabreport_data\xdc\x00\x40\xcd\x01\x00"),
    (b"\xabreport_data\xdc\x00\x40\x00", b"\xabreport_data\xdc\x00\x41\xcc\x07\x00"),
]


@every_case(("common", "variant"), UNUSUAL)
def test_v1_unusual_encoding_equals_general_reader(common: bytes, variant: bytes) -> None:
    """Overlong values, other keys and duplicate keys are handled as by the strict reader."""
    assert ENCODED[0].count(common) > 0
    data = ENCODED[0].replace(common, variant, 1)
    assert read_result(data) == read_result_step_by_step(data)


@pytest.mark.slow
@pytest.mark.parametrize("nest", [b"\x91", *slow((b"\x81\xa1x",), (b"\xdd\0\0\0\1",))])
def test_v1_with_deep_nesting_fails_under_any_recursion_limit(nest: bytes) -> None:
    """A value nested deeply is rejected at any place and recursion limit."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)  # as libraries do
    try:
        for name in (b"\xa9event_log", b"\xa3imr", b"\xa5event", b"\xa5stack", b"\xabreport_data"):
            at = ENCODED[0].index(name)
            for end, key in ((at, b""), (at + len(name), b""), (at, b"\xa7unknown")):
                deep = key + nest * (200_000 // len(nest))
                assert is_rejected(
                    v1_msgpack.decode_evidence, ENCODED[0][:end] + deep + ENCODED[0][end:]
                )
    finally:
        sys.setrecursionlimit(limit)


@settings(deadline=None)  # shared machines are slow
@given(
    st.lists(st.sampled_from([*range(0, 256, 5), 0xCC, 0xCC, 0xCC]), max_size=60).map(bytes),
    st.binary(max_size=4),
)
def test_v1_fast_path_of_number_array_stops_at_its_end(values: bytes, behind: bytes) -> None:
    """A number array ends at its count, whatever bytes follow."""
    encoded = msgspec.msgpack.encode(list(values))
    reader = MsgpackReader(encoded + behind)
    assert reader.blob() == values
    assert reader.at == len(encoded)
    reader.at = 0
    assert reader._canonical_ints(reader.count()) == values
