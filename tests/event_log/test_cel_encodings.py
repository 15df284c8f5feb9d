"""Encodings of a Canonical Event Log are read strictly: errors name the record and the offset."""

import json
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.cli.input.detect_format import recognise
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import EventLog, cel
from attestkit.event_log.cel import ENCODINGS, encoding_of
from tests.attestation.samples import mutations, refused
from tests.event_log.cel_samples import (
    DIGEST,
    EXAMPLE,
    FULL,
    cbor,
    cbor_record,
    number,
    record,
    text,
    tlv,
)
from tests.untyped import untyped

WRITTEN = {encoding: FULL.to_cel(encoding) for encoding in ENCODINGS}
EVENT = tlv(5, number(0, 4) + tlv(1, bytes(4)))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_cut_anywhere_it_is_refused(encoding: str) -> None:
    """The error names the record and an offset in it; in TLV whole records are a log."""
    whole = WRITTEN[encoding]
    borders = set()
    for size in range(1, len(whole)):
        if not refused(EventLog.from_cel, whole[:size]):
            borders.add(len(EventLog.from_cel(whole[:size]).events))
            continue
        with pytest.raises(FormatError, match="CEL record") as caught:
            EventLog.from_cel(whole[:size])
        assert caught.value.offset is not None
        assert caught.value.offset <= size
    assert borders == (set(range(1, len(FULL.events))) if encoding == "tlv" else set())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_encoding_is_told_by_the_start(encoding: str) -> None:
    """Of all logs that are written, and of one that is another kind of log it is not."""
    assert encoding_of(WRITTEN[encoding]) == encoding_of(EXAMPLE[encoding]) == encoding
    for other in (b"", b"\0", b"\x80\0", b"{}", b"[]", b'[{"imr":0}]', bytes(64), b"\xa5"):
        assert encoding_of(other) is None


@pytest.mark.parametrize("mark", [1, 2, 108])
def test_an_old_log_of_a_tpm_is_none(mark: int) -> None:
    """Its first bytes may be those of two elements, and then there are no digests."""
    sha1 = bytearray(range(100, 120))
    sha1[5] = mark  # behind PCR 0, type 8 and four bytes: where a CEL has the type of its index
    events = [(0, 8, bytes(sha1), b"v\0e\0"), (0, 4, bytes(20), bytes(4))]
    log = b"".join(
        pcr.to_bytes(4, "little")
        + kind.to_bytes(4, "little")
        + digest
        + len(data).to_bytes(4, "little")
        + data
        for pcr, kind, digest, data in events
    )
    for index in (log, log[:14] + b"\0\0\0\1" + log[18:]):
        assert encoding_of(index) is None
        assert recognise(index).kind == "event log (TPM)"


def test_a_tlv_log_is_told_by_three_elements() -> None:
    """Number, index of a register and digests; cut before their end it is no CEL."""
    log = record()
    ends = 17 + 53
    assert [encoding_of(log[:size]) for size in range(ends)] == [None] * ends
    assert encoding_of(log[:ends]) == encoding_of(log) == "tlv"
    for kind in (1, 2, 108):
        assert encoding_of(record(register=number(kind, 2, 8))) == "tlv"
        assert encoding_of(record(register=number(kind, 2, 9))) is None
        assert encoding_of(record(register=number(kind, 2) + b"\4")) is None


@pytest.mark.parametrize("count", [1, 23, 24, 255, 256, 300])
def test_arrays_of_any_size_are_told(count: int) -> None:
    """The head of an array has one byte, or more."""
    log = EventLog(FULL.events[-1:] * count)
    for encoding in ENCODINGS:
        assert EventLog.parse(log.to_cel(encoding)) == log


@pytest.mark.parametrize(
    ("log", "offset", "message"),
    [
        (record(register=number(3, 1)), 6, "type 1 wanted, type 3 found"),
        (record() + number(1, 0), 90, "record 1: type 0 wanted, type 1 found"),
        (tlv(0, b"") + record(), 5, "0 bytes, not 1 to 8"),
        (tlv(0, bytes(9)) + record(), 5, "9 bytes, not 1 to 8"),
        (record(register=number(1, 2) + number(2, 1)), 12, "two registers"),
        (record(digests=tlv(0xC, DIGEST[1:])), 17, "has 47 bytes, not 48"),
        (record(digests=2 * tlv(0xC, DIGEST)), 70, "two digests of algorithm 12"),
        (record(digests=tlv(0xD2, DIGEST)), 17, "no digest algorithm 210"),
        (record(digests=tlv(0xC, DIGEST) + b"\x0b"), 70, "5 bytes wanted, 1 left"),
        (record(content=tlv(5, number(0, 2**32, 5) + tlv(1, b""))), 75, "32 bits"),
        (record(content=tlv(5, number(0, 4))), 81, "5 bytes wanted, 0 left"),
        (record(content=tlv(5, number(0, 4) + tlv(2, b""))), 81, "no more"),
        (record(content=tlv(5, number(0, 4) + tlv(1, b"") + b"\0")), 81, "no more"),
        (record(content=tlv(4, b"")), 75, "5 bytes wanted, 0 left"),
        (record(content=tlv(4, number(3, 1))), 75, "no management record of type 3"),
        (record(content=tlv(4, tlv(2, b"\0"))), 75, "firmware_end has no value"),
        (record(content=tlv(4, number(81, 3))), 80, "no change of state 3"),
        (record(content=tlv(4, tlv(1, number(0, 1)))), 86, "5 bytes wanted"),
        (record(content=tlv(4, tlv(1, number(0, 1) + number(1, 1) + b"\0"))), 92, "two numbers"),
        (record()[:-5] + b"\xff\xff\xff\xff\0", 82, "bytes wanted"),
    ],
)
def test_broken_tlv_is_refused(log: bytes, offset: int, message: str) -> None:
    """Wrong types, sizes of numbers and digests, and what is left over."""
    with pytest.raises(FormatError, match=message) as caught:
        EventLog.from_cel(log)
    assert caught.value.offset == offset
    assert str(caught.value).startswith("CEL record ")


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (EXAMPLE["cbor"] + b"\0", "1 bytes behind the 1 records"),
        (b"\x80\0", "1 bytes behind the 0 records"),
        (b"\x9f" + cbor(cbor_record()) + b"\xff", "array of CEL records: CBOR of indefinite"),
        (b"\x98\x01" + cbor(cbor_record()), "array of CEL records: .*shortest"),
        (cbor(cbor_record(), 0), "record 1: no map"),
        (cbor([[]]), "record is a map of 5"),
        (cbor([{0: 0}]), "record is a map of 5"),
        (cbor([{**cbor_record(), 11: 0}]), "record is a map of 5"),
        (cbor([{2: 1, **{k: v for k, v in cbor_record().items() if k != 1}}]), "nv_index"),
        (cbor([{2: 1, **{k: v for k, v in cbor_record().items() if k != 9}}]), "two registers"),
        (cbor([{8: 1, **{k: v for k, v in cbor_record().items() if k != 0}}]), "key 0 wanted"),
        (cbor([cbor_record({3: [{0: 12, 1: DIGEST[1:]}]})]), "47 bytes"),
        (cbor([cbor_record({3: [{0: 12}]})]), "a digest is a map of 2"),
        (cbor([cbor_record({3: {}})]), "no array"),
        (cbor([cbor_record({9: "cel"})]), "no unsigned number"),
        (cbor([cbor_record({9: 7})]), "ima_template"),
        (cbor([cbor_record({10: {0: "ev_nothing", 1: b""}})]), "no event type 'ev_nothing'"),
        (cbor([cbor_record({10: {0: 2**32, 1: b""}})]), "32 bits"),
        (cbor([cbor_record({10: {0: 4, 1: "text"}})]), "no byte string"),
        (cbor([cbor_record({9: 4, 10: {0: 1}})]), "has data"),
        (cbor([cbor_record({9: 4, 10: {0: 2, 1: 0}})]), "has data"),
        (cbor([cbor_record({9: 4, 10: []})]), "type and data"),
        (cbor([cbor_record({9: 4, 10: {0: 81, 1: 3}})]), "no change of state 3"),
    ],
)
def test_broken_cbor_is_refused(log: bytes, message: str) -> None:
    """Other keys, orders, types and forms than the deterministic one."""
    with pytest.raises(FormatError, match=message) as caught:
        EventLog.from_cel(log)
    assert caught.value.offset is not None
    assert "CEL" in str(caught.value)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (b"[1]", "a record is no object"),
        (b'[{"recnum":0,"recnum":0}]', "recnum: occurs twice"),
        (EXAMPLE["json"] + b",", "behind the array"),
        (EXAMPLE["json"][:-1], "record 1: a comma or the end"),
        (EXAMPLE["json"][:-1] + b",]", "record 1: not JSON"),
        (EXAMPLE["json"][:-1] + b" {", "record 1: a comma or the end"),
        (b"[NaN]", "NaN is no number"),
        (b"[" + b"9" * 5000 + b"]", "not JSON that can be read"),
        (b"[" * 201, "nests deeper"),
        (b"[\xff", "not UTF-8"),
        (text(more=1), "a member 'more'"),
        (text(nv_index=1), "two registers"),
        (text(recnum=True), "recnum must be a whole number"),
        (text(recnum=-1), "recnum must be"),
        (text(recnum=2**64), "recnum must be"),
        (text(recnum=None), "recnum must be"),
        (text(pcr="2"), "pcr must be"),
        (text(digests={}), "digests must be an array"),
        (text(digests=[{}]), "a digest has the members"),
        (text(digests=[{"hashAlg": "sha3_384", "digest": ""}]), "no digest algorithm 'sha3_384'"),
        (text(digests=[{"hashAlg": 12, "digest": "zz"}]), "hex digits"),
        (text(content_type=None), "content_type must be"),
        (text(content_type="PCR"), "no content type 'PCR'"),
        (text(content=None), "content is no object"),
        (text(content={"event_type": 4, "event_data": "0"}), "event_data must be"),
        (text(content={"event_type": 4.0, "event_data": ""}), "event_type must be"),
        (text(content={"event_type": 2**32, "event_data": ""}), "32 bits"),
        (text(content={"event_type": "ev_\u212a", "event_data": ""}), "no event type"),
        (text(content_type="cel", content=[]), "without a statement"),
        (text(content_type="cel", content={"type": 2, "data": 0}), "members type, and no"),
        (text(content_type="cel", content={"type": 1, "data": 0}), "cel_version is no object"),
        (text(content_type=4, content={"type": 81, "data": "off"}), "no change of state 'off'"),
        (b"\x1e{}{}", "content_type must be"),
        (b"\x1e" + EXAMPLE["json"][1:-1] + b"{}", "record 1: U.001E wanted"),
    ],
)
def test_broken_json_is_refused(log: bytes, message: str) -> None:
    """No JSON, no record, doubled and unknown members, numbers and names that are none."""
    with pytest.raises(FormatError, match=message) as caught:
        EventLog.from_cel(log)
    assert caught.value.offset is not None


def test_offsets_of_json_are_in_bytes() -> None:
    """Whatever letters are before, the offset of a record is that of its UTF-8 form."""
    name = json.dumps([{"content_type": "\N{EURO SIGN}" * 9}], ensure_ascii=False)
    odd = EXAMPLE["json"][:-1].decode() + ", " + name[1:]
    with pytest.raises(FormatError, match=r"^CEL record 1: ") as caught:
        EventLog.from_cel(odd)
    assert caught.value.offset == odd.encode().index(b'{"content_type":')
    with pytest.raises(FormatError) as caught:
        EventLog.from_cel(odd[:-3])
    assert caught.value.offset is not None
    assert caught.value.offset <= len(odd.encode())


@pytest.mark.parametrize(
    "changed",
    [
        {"content_type": 5, "digests": [{"hashAlg": 12, "digest": DIGEST.hex().upper()}]},
        {
            "content_type": "PCClient_Std",
            "digests": [{"hashAlg": "SHA384", "digest": DIGEST.hex()}],
        },
        {"content": {"event_type": "EV_Separator", "event_data": "00000000"}},
        {"content": {"event_type": 4, "event_data": "00000000"}},
    ],
)
def test_names_and_numbers_are_the_same(changed: dict[str, Any]) -> None:
    """Types and algorithms are names in letters of either case, or numbers."""
    log = text(**changed)
    assert EventLog.parse(log) == EventLog.parse(EXAMPLE["json"])
    assert EventLog.parse(log).to_cel("json") == EXAMPLE["json"]


@pytest.mark.parametrize(
    "name", ["ev_efi_platform_firmwate_blob2", "EV_EFI_PLATFORM_FIRMWARE_BLOB2"]
)
def test_libcels_misspelling_is_read(name: str) -> None:
    """As the type that it means, which is written with its right name; also in CBOR."""
    for log in (
        text(content={"event_type": name, "event_data": ""}),
        cbor([cbor_record({10: {0: name, 1: b""}})]),
    ):
        found = EventLog.parse(log)
        assert found.events[0].event_type == 0x8000000A
        assert b'"ev_efi_platform_firmware_blob2"' in found.to_cel("json")


def test_types_without_a_name_are_numbers() -> None:
    """Private types are written as numbers, the guest agent's too."""
    written = WRITTEN["json"]
    assert b'"event_type":305419896,' in written
    assert b'"event_type":134217729,' in written
    assert b'"event_type":"ev_no_action",' in written


def test_sequences_are_read() -> None:
    """CBOR values one behind the other, and JSON texts each behind U+001E."""
    records = cbor2.loads(WRITTEN["cbor"])
    whole = EventLog.parse(WRITTEN["cbor"])
    assert EventLog.parse(cbor(*records)) == whole
    texts = [json.dumps(one).encode() for one in json.loads(WRITTEN["json"])]
    for between in (b"\x1e", b"\n\x1e", b"\n\x1e \x1e"):
        sequence = b"\x1e" + between.join(texts) + b"\n"
        assert EventLog.parse(sequence) == EventLog.parse("\n" + sequence.decode()) == whole


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("cel_version", {"major": 1, "minor": 1}),
        (1, {"major": 1, "minor": 0}),
        ("FIRMWARE_END", None),
        ("cel_timestamp", 9),
        ("state_trans", "kexec"),
        (81, 0),
    ],
)
def test_management_is_read(kind: str | int, data: Any) -> None:
    """In JSON by name or number, one statement or an array; in CBOR by number."""
    statement = {"type": kind} | ({} if data is None else {"data": data})
    for content in (statement, [statement, {"type": 2}]):
        log = text(content_type="cel", content=content, digests=[])
        assert EventLog.parse(log) == EventLog()


@pytest.mark.parametrize("content", [{0: 1, 1: {0: 1, 1: 1}}, {0: 2}, {0: 80, 1: 5}, {0: 81, 1: 0}])
def test_management_in_cbor_is_read(content: dict[int, Any]) -> None:
    """The four types."""
    log = cbor([cbor_record({3: [], 9: 4, 10: content})])
    assert EventLog.parse(log) == EventLog()


def test_sizes_and_counts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MiB and 65,536 records, of which the first too many is named."""
    assert (cel.MAX_SIZE, cel.MAX_RECORDS) == (1 << 24, 65_536)
    for data in (bytes((1 << 24) + 1), " " * ((1 << 24) + 1)):
        with pytest.raises(FormatError, match="16 MiB"):
            EventLog.from_cel(data)
    monkeypatch.setattr(cel, "MAX_RECORDS", len(FULL.events) - 1)
    for written in WRITTEN.values():
        with pytest.raises(FormatError, match=f"record {len(FULL.events) - 1}: .*65,536"):
            EventLog.from_cel(written)


@pytest.mark.parametrize("data", [None, 5, bytearray(b"[]"), memoryview(b"[]")])
def test_other_types_are_usage_errors(data: object) -> None:
    """A log is bytes or text."""
    with pytest.raises(UsageError, match="bytes or text"):
        EventLog.from_cel(untyped(data))


def test_other_bytes_are_refused() -> None:
    """What begins like none of the three."""
    for data in (b"\1", b"{", b"\xff", b"x"):
        with pytest.raises(FormatError, match="not a CEL in TLV, CBOR or JSON"):
            EventLog.from_cel(data)
    with pytest.raises(FormatError, match="array of records"):
        EventLog.from_cel("")


def test_members_in_another_order_are_told() -> None:
    """A record in JSON whose first members an agent's event could have as well."""
    members = json.loads(EXAMPLE["json"])[0]
    turned = json.dumps([dict(sorted(members.items()))])
    assert encoding_of(turned.encode()) is None
    assert EventLog.parse(turned) == EventLog.parse(EXAMPLE["json"])


def test_a_ccel_reader_names_it() -> None:
    """Who expects a CCEL or an agent's log is told who reads this."""
    for encoding in ("tlv", "cbor"):
        with pytest.raises(FormatError, match=f"Event Log in {encoding}; EventLog.from_cel"):
            EventLog.from_ccel(EXAMPLE[encoding])
    with pytest.raises(FormatError, match=r"EventLog.from_cel reads it"):
        EventLog.from_json(EXAMPLE["json"])


@settings(deadline=None, max_examples=100)  # machines are busy
@given(mutations(*WRITTEN.values(), *EXAMPLE.values()))
def test_mutated_logs_are_read_or_refused(data: bytes) -> None:
    """What is read after a mutation is a log like any other, in each encoding."""
    if not refused(EventLog.from_cel, data):
        log = EventLog.from_cel(data)
        for encoding in ENCODINGS if log.events else ():
            assert EventLog.from_cel(log.to_cel(encoding)).replay() == log.replay()


@settings(deadline=None, max_examples=100)  # machines are busy
@given(st.sampled_from([b"", b"\0\0\0\0\1\0", b"\x81\xa5", b"[{", b"\x1e"]), st.binary())
def test_any_bytes_are_read_or_refused(start: bytes, data: bytes) -> None:
    """Whatever comes, only our errors come out."""
    refused(EventLog.from_cel, start + data)
    refused(EventLog.parse, start + data)
