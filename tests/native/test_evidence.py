"""The compiled decoders of a TD's evidence have the results and errors of those in Python."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
from hypothesis import strategies as st

from attestkit import _native
from attestkit._native import _python
from attestkit.attestation.cmw import evidence as cmw_evidence
from attestkit.attestation.cmw import record as cmw
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire import scale, v0_scale, v1_msgpack
from attestkit.attestation.wire.evidence_parts import Evidence, RuntimeEvent, Stack, Tdx
from attestkit.errors import FormatError
from attestkit.event_log import WireEvent
from tests.attestation.samples import (
    EVENTS,
    FIXTURE,
    KINDS,
    STACK,
    V2,
    mutations,
    prefixes,
    v2_event,
)
from tests.runner.cases import every_case
from tests.thorough import thorough
from tests.untyped import untyped, with_false_length

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)


class Codec(NamedTuple):
    """An encoding, and its decoders."""

    encode: Callable[[Evidence], bytes]
    decode: Callable[[bytes], Evidence]
    fast: Callable[[bytes], Evidence | None]


SCALE = Codec(v0_scale.encode_evidence, v0_scale.decode_evidence, parts.decode_scale_td)
MSGPACK = Codec(v1_msgpack.encode_evidence, v1_msgpack.decode_evidence, parts.decode_msgpack_td)
CMW = Codec(
    lambda evidence: cmw_evidence.encode_evidence("cbor", evidence),
    lambda data: cmw_evidence.decode_evidence(data).evidence,
    lambda data: (parts.decode_cmw_td(data) or (None,))[0],
)
CODECS = pytest.mark.parametrize("codec", [SCALE, MSGPACK, CMW], ids=["scale", "msgpack", "cmw"])

# Sizes around the changes of the heads of lengths, in each field.
SIZES = [0, 1, 15, 16, 31, 32, 48, 63, 64, 255, 256, 16_383, 16_384, 65_535, 65_536]
LOG = tuple(
    WireEvent(0xFFFFFFFF >> shift, 1 << shift % 32, b"\xcc" * (size % 100), "é" * (size // 2), b"p")
    for shift, size in enumerate(SIZES)
)
LONG = (*EVENTS, *(WireEvent(3, 127 + size, b"", "n", bytes(size)) for size in SIZES))
RUNTIME = tuple(RuntimeEvent("é" * (size // 2), b"\x80" * size) for size in SIZES)
QUOTE = bytes(range(256)) * 2 + b"\xcc\xcc\xcc\x7f\xcc"
TDS = [
    Evidence(Tdx(b"", ()), Stack(bytes(64), (), "")),
    KINDS[0],
    Evidence(Tdx(QUOTE, EVENTS), STACK._replace(report_data=QUOTE[-64:])),
    Evidence(Tdx(QUOTE, LOG), STACK._replace(runtime_events=RUNTIME, config="€" * 300)),
    Evidence(Tdx(QUOTE, LONG), STACK),
]
UNMARKED = v2_event("a:b", b"c")._replace(preimage=None)
SECOND = [
    V2,
    V2._replace(platform=Tdx(b"\x80", (*EVENTS, UNMARKED, EVENTS[1]._replace(preimage="é")))),
    V2._replace(stack=STACK._replace(runtime_events=(RuntimeEvent("a:b", b"c", 2),) * 20)),
]


@contextmanager
def in_python() -> Iterator[None]:
    """Decode with the Python decoders."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("decode_scale_td", "decode_msgpack_td", "decode_cmw_td"):
            patch.setattr(parts, name, lambda _: None)
        yield


def types(value: object) -> object:
    """Return the types of a value's parts: named tuples of different classes can be equal."""
    return (type(value), *map(types, value)) if isinstance(value, tuple) else type(value)


def outcome(decode: Callable[[bytes], Evidence], data: bytes) -> tuple[object, ...]:
    """Return evidence and its types, or all of an error."""
    try:
        found = decode(data)
    except FormatError as error:
        return error.message, error.reason, error.offset
    return found, types(found)


def decoded(codec: Codec, data: bytes) -> tuple[object, ...]:
    """Return the outcome, which is that of the Python decoder."""
    found = outcome(codec.decode, data)
    with in_python():
        assert outcome(codec.decode, data) == found
    return found


@CODECS
@pytest.mark.parametrize("evidence", TDS)
def test_td_is_decoded_by_compiled_core(codec: Codec, evidence: Evidence) -> None:
    """Evidence as agents write it needs no Python decoder, and is the same as with it."""
    data = codec.encode(evidence)
    assert decoded(codec, data) == (evidence, types(evidence))
    found = codec.fast(data)
    assert found == (evidence if _native.CORE == "compiled" else None)


@pytest.mark.parametrize("collateral", [None, b"", b"{}" * 200])
def test_collateral_of_cmw_is_returned(collateral: bytes | None) -> None:
    """Collateral is returned beside the evidence; it has an indicator of its own."""
    data = cmw_evidence.encode_evidence("cbor", KINDS[0], collateral)
    expected = (KINDS[0], collateral) if _native.CORE == "compiled" else None
    assert parts.decode_cmw_td(data) == expected
    endorsing = b"\x03kreport_data"
    for changed in (data.replace(endorsing, b"\x04kreport_data"), *prefixes(data)):
        if changed != data:
            assert parts.decode_cmw_td(changed) is None
            decoded(CMW, changed)
    found = cmw_evidence.decode_evidence(data)
    with in_python():
        assert cmw_evidence.decode_evidence(data) == found
    assert (found.evidence, found.collateral) == (KINDS[0], collateral)


@pytest.mark.parametrize("codec", [MSGPACK, CMW], ids=["msgpack", "cmw"])
@pytest.mark.parametrize("evidence", SECOND)
def test_td_with_version_2_events_is_decoded_by_compiled_core(
    codec: Codec, evidence: Evidence
) -> None:
    """Version and preimage are optional members."""
    data = codec.encode(evidence)
    assert decoded(codec, data) == (evidence, types(evidence))
    assert (codec.fast(data) is not None) is (_native.CORE == "compiled")


@CODECS
@pytest.mark.parametrize("evidence", TDS[1:3])
def test_td_cut_at_any_length_fails_equally(codec: Codec, evidence: Evidence) -> None:
    """No proper prefix is evidence, nor evidence with a byte behind it; the errors are equal."""
    data = codec.encode(evidence)
    for cut in [*prefixes(data), data + b"\0"]:
        assert codec.fast(cut) is None
        assert decoded(codec, cut)[1] in {"truncated", "trailing_data", "unrecognized"}


def test_captured_evidence_cut_at_any_length_fails_equally() -> None:
    """The same holds for evidence of an agent."""
    if FIXTURE is None:
        pytest.skip("needs the captures")
    for cut in prefixes(FIXTURE, every=7):
        assert parts.decode_scale_td(cut) is None


WITH_COLLATERAL = cmw_evidence.encode_evidence("cbor", KINDS[0], b"{}")
MUTATED = st.tuples(
    st.just(SCALE), mutations(*map(SCALE.encode, [*TDS[:3], KINDS[1]]))
) | st.one_of(
    [
        st.tuples(st.just(codec), mutations(*map(codec.encode, [*TDS[:3], *SECOND])))
        for codec in (MSGPACK, CMW)
    ]
    + [st.tuples(st.just(CMW), mutations(WITH_COLLATERAL))]
)


@thorough(MUTATED, few=250, many=10_000)
def test_changed_td_is_decoded_equally(changed: tuple[Codec, bytes]) -> None:
    """Evidence with a few bytes replaced, inserted or removed has the outcome of Python."""
    codec, data = changed
    decoded(codec, data)


@pytest.mark.parametrize(
    ("count", "reason"), [(65_536, None), (65_537, "too_many"), (1 << 30, "truncated")]
)
def test_number_of_events_is_limited(count: int, reason: str | None) -> None:
    """65,536 events are decoded; more are not, nor more than there are bytes."""
    event = scale.encode_u32(0) * 2 + bytes(3)
    stack = bytes(64) + scale.encode_text("")
    some, none = scale.encode_compact(count), scale.encode_compact(0)
    logged = b"\0\0\0" + some + event * min(count, 65_537) + none + stack
    runtime = b"\0\0\0" + none + some + bytes(2 * min(count, 65_537)) + stack
    for data in (logged, runtime):
        assert (SCALE.fast(data) is None) is (reason is not None or _native.CORE != "compiled")
        if reason is not None:
            assert decoded(SCALE, data)[1] == reason


@pytest.mark.parametrize(
    "codec",
    [pytest.param(MSGPACK, id="msgpack"), pytest.param(CMW, id="cmw", marks=pytest.mark.slow)],
)
def test_number_of_events_in_version_1_is_limited(codec: Codec) -> None:
    """65,536 events are decoded, and one more is not."""
    for count, fits in ((65_536, True), (65_537, False)):
        logged = Evidence(Tdx(b"", (WireEvent(0, 0, b"", "", b""),) * count), STACK)
        runtime = STACK._replace(runtime_events=(RuntimeEvent("", b""),) * count)
        for evidence in (logged, Evidence(Tdx(b"", ()), runtime)):
            found = codec.fast(codec.encode(evidence))
            assert (found is not None) is (fits and _native.CORE == "compiled")


@pytest.mark.parametrize(
    ("given", "other"),
    [
        (b"\xa3imr\x00", b"\xa3imr\xcc\x00"),
        (b"\xa3imr\x00", b"\xa3imr\xce\0\0\0\0"),
        (b"\xc4\x30", b"\xc5\0\x30"),
        (b"\xa9acpi-rsdp", b"\xdb\0\0\0\x09acpi-rsdp"),
        (b"\x92\x85", b"\xdd\0\0\0\2\x85"),
    ],
)
def test_longer_heads_are_decoded_equally(given: bytes, other: bytes) -> None:
    """Msgpack has no shortest form; the decoders do not require it, but for arrays of integers."""
    data = MSGPACK.encode(KINDS[0])
    assert given in data
    longer = data.replace(given, other, 1)
    assert decoded(MSGPACK, longer) == (KINDS[0], types(KINDS[0]))
    assert (MSGPACK.fast(longer) is not None) is (_native.CORE == "compiled")


QUOTES = st.lists(st.sampled_from([b"text of 8", b"\x7f", b"\x80", b"\xcc", bytes(7)]), max_size=12)


@thorough(QUOTES.map(b"".join) | st.binary(max_size=60), few=200, many=5000)
def test_arrays_of_integers_are_decoded_equally(quote: bytes) -> None:
    """Eight short integers are read at once, wherever a long one is; and the array may be cut."""
    evidence = Evidence(Tdx(quote, ()), STACK._replace(report_data=quote[::-1]))
    data = MSGPACK.encode(evidence)
    assert decoded(MSGPACK, data) == (evidence, types(evidence))
    for cut in (data[: data.index(b"event_log") - 2], data[: data.index(b"runtime_events") - 2]):
        assert MSGPACK.fast(cut) is None


OTHER_CMW = [
    (b'"event_payload":"dead"', b'"event_payload":"DEad"', True),
    (b'"event_payload":"dead"', b'"event_payload":"dea"', False),
    (b'"event_payload":"dead"', b'"event_payload":"dea\\u0064"', False),
    (b'"imr":3', b'"imr":03', False),
    (b'"imr":3', b'"imr":3.0', False),
    (b'"imr":3', b'"imr":-0', False),
    (b'"imr":3', b'"imr":4294967295', True),
    (b'"imr":3', b'"imr":4294967296', False),
    (b'"imr":3', b'"imr":3,"imr":3', False),
    (b'"imr":3', b'"x":{},"imr":3', False),
    (b"},{", b"}]{", False),
    (b"},{", b"},,{", False),
    (b'"}]', b'"},]', False),
    (b'"}]', b'"},', False),
    (b'"}]', b'","version":1}]', True),
    (b'"}]', b'","version":3}]', False),
    (b'"}]', b'","preimage":null}]', False),
    (b'"}]', b'","preimage":"","version":2}]', False),
    (b"acpi-rsdp", b"acpi\\/rsdp", False),
    (b"acpi-rsdp", "é".encode() * 40, True),
    (b"acpi-rsdp", b"\xc3(", False),
    (b"acpi-rsdp", b"a\0b", False),
    (b"[", b"[ ", False),
]


@every_case(("given", "other", "fast"), OTHER_CMW)
def test_other_json_is_decoded_equally(given: bytes, other: bytes, fast: bool) -> None:
    """A log in JSON that is not compact, or has other members, is left to the Python decoder."""
    entry = cmw.read_cbor(CMW.encode(KINDS[0]))
    assert isinstance(entry, cmw.Collection)
    record = entry.entries["event_log"]
    assert isinstance(record, cmw.Record)
    assert given in record.value
    log = record._replace(value=record.value.replace(given, other, 1))
    data = cmw.write_cbor(entry._replace(entries={**entry.entries, "event_log": log}))
    decoded(CMW, data)
    assert (CMW.fast(data) is not None) is (fast and _native.CORE == "compiled")


@pytest.mark.parametrize(
    ("given", "other"),
    [
        (b"\x58\x40", b"\x59\0\x40"),
        (b"\x44\0\x7f", b"\x58\4\0\x7f"),
        (b"\x81\xa2", b"\x98\1\xa2"),
        (b"fapp-id", b"x\6app-id"),
        (b"\4kreport_data", b"\x18\4kreport_data"),
        (b"\4kreport_data", b"\2kreport_data"),
        (b"\x78\x23application", b"\x78\x23Application"),
    ],
)
def test_other_heads_in_cbor_are_decoded_equally(given: bytes, other: bytes) -> None:
    """Heads that are not in their shortest form fail; other types and indicators may be valid."""
    data = CMW.encode(KINDS[0])
    assert given in data
    changed = data.replace(given, other, 1)
    assert CMW.fast(changed) is None
    decoded(CMW, changed)


@CODECS
@pytest.mark.parametrize("wrap", [bytearray, memoryview, lambda data: with_false_length(data, 1)])
def test_other_types_are_left(codec: Codec, wrap: Callable[[bytes], object]) -> None:
    """Buffers that another thread could change, and subclasses of bytes, are left to Python."""
    assert codec.fast(untyped(wrap(codec.encode(KINDS[0])))) is None


@compiled
def test_classes_of_evidence_are_tuples() -> None:
    """Other classes would not have the fields."""
    classes = [Evidence, Tdx, Stack, WireEvent, RuntimeEvent]
    for at in range(5):
        for wrong in (int, None):
            with pytest.raises(TypeError):
                _native.evidence_decoders(*untyped([*classes[:at], wrong, *classes[at + 1 :]]))
    for wrong in (int, None):
        with pytest.raises(TypeError):
            _native.event_maker(untyped(wrong))


def test_pure_python_leaves_everything() -> None:
    """Without the compiled core, the Python decoders do all of it."""
    for decode in _python.evidence_decoders(Evidence, Tdx, Stack, WireEvent, RuntimeEvent):
        assert decode(SCALE.encode(KINDS[0])) is None
    assert _python.event_maker(WireEvent)(EVENTS) is None
