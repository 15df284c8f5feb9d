"""V1 evidence: byte for byte what agents write; reading takes what other writers may do as well."""

import sys
from typing import Any

import msgspec.msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation.wire import v1_document, v1_msgpack, v1_tdx_fast
from attestkit.attestation.wire.evidence_parts import Evidence, Tdx
from attestkit.attestation.wire.v1_msgpack import MsgpackReader
from attestkit.errors import FormatError, UsageError
from tests.attestation.samples import (
    ENCODINGS,
    KINDS,
    POD,
    STACK,
    V2,
    cuts,
    mutations,
    refused,
    v2_event,
)
from tests.vectors import needs_shared

EVIDENCE = [*KINDS, V2, POD]
ENCODED = [v1_msgpack.encode(evidence) for evidence in EVIDENCE]
ROWS = [
    pytest.param(bytes.fromhex(case[key]), id=f"{case['name']} {key}")
    for case in ENCODINGS
    for key in ("v1_msgpack", "v1_msgpack_dstack_pod")
    if case.get(key)
]


def changed(evidence: Evidence, *path: str | int, to: object) -> bytes:
    """Return the encoding of `evidence` with one value of its tree replaced."""
    whole: Any = msgspec.msgpack.decode(v1_msgpack.encode(evidence))
    at = whole
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return msgspec.msgpack.encode(whole)


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_every_kind_survives(evidence: Evidence) -> None:
    """Evidence of every platform and stack is read back as it was written."""
    assert v1_msgpack.decode(v1_msgpack.encode(evidence)) == evidence


@needs_shared
@pytest.mark.parametrize("encoded", ROWS)
def test_vectors_are_written_byte_for_byte(encoded: bytes) -> None:
    """The synthetic evidence of every platform and stack is written again unchanged."""
    assert v1_msgpack.encode(v1_msgpack.decode(encoded)) == encoded


@pytest.mark.parametrize("encoded", [encoded for encoded in ENCODED if len(encoded) < 5000])
def test_cut_anywhere_it_is_refused(encoded: bytes) -> None:
    """No prefix of evidence is evidence; the error has the documented start."""
    for cut in cuts(encoded):
        with pytest.raises(FormatError, match=r"^failed to decode attestation from msgpack"):
            v1_msgpack.decode(cut)


def test_trailing_bytes_are_counted() -> None:
    """Bytes behind the evidence are refused with their number."""
    with pytest.raises(FormatError) as caught:
        v1_msgpack.decode(ENCODED[0] + bytes(3))
    assert str(caught.value) == "trailing bytes after attestation msgpack: 3"


def test_another_version_is_named() -> None:
    """Only version 1 is known."""
    with pytest.raises(FormatError) as caught:
        v1_msgpack.decode(changed(KINDS[0], "version", to=2))
    assert str(caught.value) == "unsupported attestation version: expected 1, got 2"


def test_key_order_and_unknown_keys_do_not_matter() -> None:
    """Keys may come in any order, `data` before `kind` too, and unknown ones are skipped."""

    def shuffled(value: object) -> object:
        if isinstance(value, dict):
            items = [(key, shuffled(item)) for key, item in reversed(value.items())]
            return {"unknown": [{"x": [None, 1.5, -7, "y", b"z"]}]} | dict(items)
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    for evidence, encoded in zip(EVIDENCE, ENCODED, strict=True):
        other = msgspec.msgpack.encode(shuffled(msgspec.msgpack.decode(encoded)))
        assert other != encoded
        assert v1_msgpack.decode(other) == evidence


def test_arrays_may_stand_for_maps() -> None:
    """A struct may be an array of its fields in order, fields at its end left out."""

    def listed(value: object) -> object:
        if isinstance(value, dict):
            return [listed(item) for item in value.values()]
        return [listed(item) for item in value] if isinstance(value, list) else value

    # The version of an event without preimage stands in the middle, so these two keep their order.
    for evidence in (KINDS[0], KINDS[3], V2):
        whole = msgspec.msgpack.decode(v1_msgpack.encode(evidence))
        inner = {key: listed(value) for key, value in whole.items()}
        assert v1_msgpack.decode(msgspec.msgpack.encode(inner)) == evidence


def test_bytes_may_be_bin_or_numbers() -> None:
    """Every byte field is read in both representations."""

    def other(value: object) -> object:
        if isinstance(value, bytes):
            return list(value)
        if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
            return bytes(value)
        if isinstance(value, list):
            return [other(item) for item in value]
        return {k: other(v) for k, v in value.items()} if isinstance(value, dict) else value

    for evidence, encoded in zip(EVIDENCE, ENCODED, strict=True):
        swapped = msgspec.msgpack.encode(other(msgspec.msgpack.decode(encoded)))
        assert swapped != encoded
        assert v1_msgpack.decode(swapped) == evidence


def test_a_missing_digest_is_empty_and_a_missing_version_is_1() -> None:
    """These two may be left out of an event."""
    whole = msgspec.msgpack.decode(ENCODED[0])
    del whole["platform"]["data"]["event_log"][0]["digest"]
    platform = v1_msgpack.decode(msgspec.msgpack.encode(whole)).platform
    assert isinstance(platform, Tdx)
    assert platform.event_log[0].digest == b""
    assert platform.event_log[0].version == 1


EVENT = ("platform", "data", "event_log", 0)
WRONG: list[tuple[tuple[str | int, ...], object]] = [
    (("version",), "1"),
    (("version",), -1),
    (("platform",), 7),
    (("platform", "kind"), "unknown"),
    (("platform", "data"), None),
    (("platform", "data", "quote"), "text"),
    (("platform", "data", "quote"), [256]),
    (("platform", "data", "quote"), [-1]),
    (("platform", "data", "quote"), [70_000]),
    (("platform", "data", "quote"), ["x"]),
    (("platform", "data", "quote"), [None]),
    (("platform", "data", "event_log"), {}),
    (("platform", "data", "event_log"), [[0]]),
    ((*EVENT, "imr"), 2**32),
    ((*EVENT, "event_type"), 1.5),
    ((*EVENT, "event"), b"bytes"),
    ((*EVENT, "version"), 3),
    ((*EVENT, "preimage"), 5),
    (EVENT, [0, 10, b"", "name", b"", 1, None, "one too many"]),
    (("stack", "kind"), "dstack-pod"),  # whose payload is missing
    (("stack", "data", "config"), None),
    (("stack", "data", "runtime_events"), [{"event": "x"}]),
]


@pytest.mark.parametrize(("path", "value"), WRONG)
def test_wrong_values_are_refused(path: tuple[str | int, ...], value: object) -> None:
    """A value of another type, out of range or missing is refused with an offset."""
    with pytest.raises(FormatError, match=r"^failed to decode attestation from msgpack") as caught:
        v1_msgpack.decode(changed(KINDS[0], *path, to=value))
    assert caught.value.offset is not None


def test_a_key_that_occurs_twice_is_refused() -> None:
    """Readers disagree on which of two values holds, so neither does."""
    encoded = ENCODED[2]
    doubled = encoded.replace(b"\x83\xa7version\x01", b"\x84\xa7version\x01\xa7version\x01", 1)
    with pytest.raises(FormatError, match="version occurs twice"):
        v1_msgpack.decode(doubled)


@pytest.mark.parametrize("nest", [b"\x91", b"\x81\xa1x", b"\xdd\0\0\0\1"])
def test_deep_nesting_is_no_danger(nest: bytes) -> None:
    """A value nested a million times, where anything is skipped, neither crashes nor is slow."""
    deep = nest * (1_000_000 // len(nest))
    for tail in (b"", b"\xc0"):
        data = b"\x84\xa7unknown" + deep + tail + ENCODED[0][1:]
        assert refused(v1_msgpack.decode, data) == (tail == b"")


def test_what_is_unknown_is_limited() -> None:
    """A million values are passed over, and not ten; nor bytes as numbers in longer forms."""
    deep = b"\x91" * 1_100_000 + b"\xc0"
    with pytest.raises(FormatError, match="over 1048576 unknown values"):
        v1_msgpack.decode(b"\x84\xa7unknown" + deep + ENCODED[0][1:])
    longer = b"\xdd" + (140_000).to_bytes(4, "big") + b"\xcd\0\1" * 140_000
    with pytest.raises(FormatError, match="shortest form"):
        v1_msgpack.MsgpackReader(longer).blob()
    assert (
        len(v1_msgpack.MsgpackReader(b"\xdc\xff\xff" + longer[5 : 5 + 3 * 65_535]).blob()) == 65_535
    )


def test_a_huge_count_costs_nothing() -> None:
    """A count that the rest cannot hold is refused before anything is made."""
    for head in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"):
        with pytest.raises(FormatError):
            v1_msgpack.decode(b"\x81\xa8platform\x82\xa4kind\xa3tdx\xa4data" + head + bytes(8))


def test_items_are_limited() -> None:
    """65,536 events are read, one more is not."""
    events = [{"event": "", "payload": b""}] * 65_536
    path = ("stack", "data", "runtime_events")
    assert (
        len(v1_msgpack.decode(changed(KINDS[2], *path, to=events)).stack.runtime_events) == 65_536
    )
    with pytest.raises(FormatError, match="65537 items are more than 65536"):
        v1_msgpack.decode(changed(KINDS[2], *path, to=[*events, events[0]]))


def test_an_array_of_numbers_cut_behind_its_count_is_refused() -> None:
    """A count that fits by its bytes, but not by its numbers, is refused at the end."""
    with pytest.raises(FormatError, match="ends inside") as caught:
        MsgpackReader(bytes.fromhex("93cc80cc80")).blob()
    assert caught.value.offset == 5


def test_unknown_tpm_platforms_are_refused() -> None:
    """The platform of a TPM quote is one of four names."""
    with pytest.raises(FormatError, match="unknown TPM platform"):
        v1_msgpack.decode(changed(KINDS[1], "platform", "data", "tpm_quote", "platform", to="x"))


def test_the_reader_skips_every_type() -> None:
    """Whatever msgpack can say is skipped as one value, and only c1, which says nothing, is not."""
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
    with pytest.raises(FormatError, match="no msgpack value"):
        MsgpackReader(b"\xc1").skip()


def test_numbers_of_bytes_may_be_written_too_long() -> None:
    """An array of numbers is read in any form of its numbers, as msgpack leaves it open."""
    encoded = bytes.fromhex("94" + "05" + "cc05" + "cd00ff" + "ce00000080")
    assert MsgpackReader(encoded).blob() == b"\x05\x05\xff\x80"


def test_half_a_surrogate_pair_cannot_be_written() -> None:
    """Text without a UTF-8 form is the caller's mistake."""
    evidence = Evidence(KINDS[2].platform, STACK._replace(config="\ud800"))
    with pytest.raises(UsageError, match="surrogate"):
        v1_msgpack.encode(evidence)


def test_the_tree_has_the_keys_in_the_order_of_the_wire() -> None:
    """Keys stand as documented, and the version of an event only when it is 2."""
    tree = v1_document.tree(V2)
    assert list(tree) == ["version", "platform", "stack"]
    event = tree["platform"]["data"]["event_log"][0]
    order = ["imr", "event_type", "digest", "event", "event_payload", "version", "preimage"]
    assert list(event) == order
    assert list(tree["stack"]["data"]) == ["report_data", "runtime_events", "config"]
    assert list(tree["stack"]["data"]["runtime_events"][0]) == ["event", "payload"]


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=200).map(lambda tail: b"\x83" + tail))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever comes, only FormatError comes out."""
    refused(v1_msgpack.decode, data)


@settings(deadline=None)  # machines are busy
@given(mutations(*[encoded[:2000] for encoded in ENCODED]))
def test_mutated_evidence_is_read_or_refused(data: bytes) -> None:
    """What can be read after a mutation has a form that is read as the same."""
    if not refused(v1_msgpack.decode, data):
        evidence = v1_msgpack.decode(data)
        assert v1_msgpack.decode(v1_msgpack.encode(evidence)) == evidence


def read(data: bytes) -> object:
    """Return the evidence in `data`, or what the error says and where."""
    try:
        return v1_msgpack.decode(data)
    except FormatError as error:
        return error.message, error.offset


def read_step_by_step(data: bytes) -> object:
    """Like `read`, but without the short ways of what agents write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(v1_msgpack, "_TDX_START", b"no evidence starts so")
        patch.setattr(MsgpackReader, "_plain_ints", lambda _self, _count: None)
        return read(data)


MARKS = bytes([*range(200, 210), 0xCC, 0xCC, 0xCC, 5, 0xCC])
TD = v1_msgpack.encode(Evidence(Tdx(MARKS, (v2_event("a:b", b"c"),)), STACK))


@settings(deadline=None)  # machines are busy
@given(mutations(TD, ENCODED[0]))
def test_evidence_is_read_alike_at_once_and_step_by_step(data: bytes) -> None:
    """The short way gives what the long one gives, errors included."""
    assert read(data) == read_step_by_step(data)


def test_the_short_way_is_taken() -> None:
    """Evidence of a TD as agents write it is read without the walk from field to field."""
    for encoded in (TD, ENCODED[0], ENCODED[5]):
        with pytest.MonkeyPatch.context() as patch:
            patch.delattr(v1_document, "decode")
            assert v1_msgpack.encode(v1_msgpack.decode(encoded)) == encoded


UNUSUAL = [
    (b"\xa3imr\x00", b"\xa3imr\xcc\x00"),  # a number in a longer form
    (b"\xa5event\xa9acpi-rsdp", b"\xa5event\xd9\x09acpi-rsdp"),  # a text in a longer form
    (b"\x85\xa3imr\x00", b"\x86\xa3imr\x01\xa3imr\x00"),  # a key twice
    (b"\x85\xa3imr\x00", b"\x86\xa7version\x01\xa3imr\x00"),  # what is left out, written
    (b"\x85\xa3imr\x00", b"\x86\xa7unknown\x90\xa3imr\x00"),  # an unknown key
    (b"\xa3imr\x00", b"\xa3imr\xcf\0\0\0\1\0\0\0\0"),  # 33 bits
    (b"\xa3imr\x00", b"\xa3imr\xff"),  # -1
    (b"acpi-rsdp", b"\xed\xa0\x80i-rsdp"),  # half a surrogate pair
    (b"\xa4kind\xa6dstack", b"\xa4kind\xa6Dstack"),
    (b"\xabreport_data\xdc\x00\x40\x00", b"\xabreport_data\xdc\x00\x40\xcd\x01\x00"),
    (b"\xabreport_data\xdc\x00\x40\x00", b"\xabreport_data\xdc\x00\x41\xcc\x07\x00"),
]


@pytest.mark.parametrize(("usual", "unusual"), UNUSUAL)
def test_what_agents_do_not_write_takes_the_long_way(usual: bytes, unusual: bytes) -> None:
    """Longer forms, other keys, keys that occur twice: it is the strict reader that decides."""
    assert ENCODED[0].count(usual) > 0
    data = ENCODED[0].replace(usual, unusual, 1)
    rest = data[data.index(b"\xa9event_log") :]
    assert v1_tdx_fast.decode(b"", rest) is None
    assert read(data) == read_step_by_step(data)


@pytest.mark.parametrize("nest", [b"\x91", b"\x81\xa1x", b"\xdd\0\0\0\1"])
def test_deep_nesting_behind_a_quote_is_no_danger(nest: bytes) -> None:
    """A value nested a million times, in any place, is refused under any recursion limit."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)  # as libraries do
    try:
        for name in (b"\xa9event_log", b"\xa3imr", b"\xa5event", b"\xa5stack", b"\xabreport_data"):
            at = ENCODED[0].index(name)
            for end, key in ((at, b""), (at + len(name), b""), (at, b"\xa7unknown")):
                deep = key + nest * (1_000_000 // len(nest))
                assert refused(v1_msgpack.decode, ENCODED[0][:end] + deep + ENCODED[0][end:])
    finally:
        sys.setrecursionlimit(limit)


@settings(deadline=None)  # machines are busy
@given(
    st.lists(st.sampled_from([*range(0, 256, 5), 0xCC, 0xCC, 0xCC]), max_size=60).map(bytes),
    st.binary(max_size=4),
)
def test_numbers_of_bytes_are_read_at_once(values: bytes, behind: bytes) -> None:
    """An array of numbers ends where it ends, whatever follows, marks as numbers included."""
    encoded = msgspec.msgpack.encode(list(values))
    reader = MsgpackReader(encoded + behind)
    assert reader.blob() == values
    assert reader.at == len(encoded)
    reader.at = 0
    assert reader._plain_ints(reader.count()) == values
