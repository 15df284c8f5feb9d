"""Canonical Event Logs are read strictly: errors name the record and the offset."""

import json
from typing import Any

import cbor2
import pytest

from attestkit.cli.input.detect_format import identify
from attestkit.errors import FormatError
from attestkit.event_log import EventLog, cel
from attestkit.event_log.cel import ENCODINGS, detect_encoding
from tests.attestation.samples import is_rejected
from tests.event_log.cel.cel_samples import (
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
from tests.raising import raises
from tests.runner.cases import every_case

WRITTEN = {encoding: FULL.to_cel(encoding) for encoding in ENCODINGS}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_from_cel_of_truncated_log_fails_naming_offset(encoding: str) -> None:
    """A truncated log is rejected within its bounds; in TLV a prefix of whole records is a log."""
    whole = WRITTEN[encoding]
    record_counts = set()
    for size in range(1, len(whole)):
        if not is_rejected(EventLog.from_cel, whole[:size]):
            record_counts.add(len(EventLog.from_cel(whole[:size]).events))
            continue
        with pytest.raises(FormatError) as caught:
            EventLog.from_cel(whole[:size])
        assert caught.value.offset is not None
        assert caught.value.offset <= size
    assert record_counts == (set(range(1, len(FULL.events))) if encoding == "tlv" else set())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_detect_encoding_recognises_cel_only(encoding: str) -> None:
    """Each encoding is detected, and other data are not taken for a CEL."""
    assert detect_encoding(WRITTEN[encoding]) == detect_encoding(EXAMPLE[encoding]) == encoding
    for other in (b"", b"\0", b"\x80\0", b"{}", b"[]", b'[{"imr":0}]', bytes(64), b"\xa5"):
        assert detect_encoding(other) is None


@pytest.mark.parametrize("mark", [1, 2, 108])
def test_detect_encoding_of_sha1_tpm_log_is_none(mark: int) -> None:
    """The start of a SHA-1 TPM log can resemble two TLV elements; it has no digests element."""
    sha1 = bytearray(range(100, 120))
    sha1[5] = mark  # offset of the index type in a CEL
    events = [(0, 8, bytes(sha1), b"v\0e\0"), (0, 4, bytes(20), bytes(4))]
    log = b"".join(
        pcr.to_bytes(4, "little")
        + kind.to_bytes(4, "little")
        + digest
        + len(data).to_bytes(4, "little")
        + data
        for pcr, kind, digest, data in events
    )
    for candidate in (log, log[:14] + b"\0\0\0\1" + log[18:]):
        assert detect_encoding(candidate) is None
        assert identify(candidate).kind == "event log (TPM)"


def test_detect_encoding_of_tlv_needs_three_elements() -> None:
    """Detection requires the record number, the register index and the complete digests."""
    log = record()
    prefix = 17 + 53
    assert [detect_encoding(log[:size]) for size in range(prefix)] == [None] * prefix
    assert detect_encoding(log[:prefix]) == detect_encoding(log) == "tlv"
    for kind in (1, 2, 108):
        assert detect_encoding(record(register=number(kind, 2, 8))) == "tlv"
        assert detect_encoding(record(register=number(kind, 2, 9))) is None
        assert detect_encoding(record(register=number(kind, 2) + b"\4")) is None


@every_case("count", [1, 23, 24, 255, 256, 300])
def test_parse_of_cel_with_any_record_count_round_trips(count: int) -> None:
    """Arrays with one-byte and longer CBOR heads are detected and read."""
    log = EventLog(FULL.events[-1:] * count)
    for encoding in ENCODINGS:
        assert EventLog.parse(log.to_cel(encoding)) == log


@every_case(
    ("log", "offset", "reason"),
    [
        (record(register=number(3, 1)), 6, "missing"),
        (record() + number(1, 0), 90, "missing"),
        (tlv(0, b"") + record(), 5, "wrong_size"),
        (record(register=number(1, 2) + number(2, 1)), 12, "inconsistent"),
        (record(register=number(1, 2) + number(4, 1)), 12, "missing"),
        (record(digests=tlv(0xC, DIGEST[1:])), 17, "wrong_size"),
        (record(digests=2 * tlv(0xC, DIGEST)), 70, "duplicate"),
        (record(digests=tlv(0xD2, DIGEST)), 17, "unsupported_algorithm"),
        (record(digests=tlv(0xC, DIGEST) + b"\x0b"), 70, "truncated"),
        (record(content=tlv(5, number(0, 2**32, 5) + tlv(1, b""))), 75, "event_type"),
        (record(content=tlv(5, number(0, 4))), 81, "truncated"),
        (record(content=tlv(5, number(0, 4) + tlv(2, b""))), 81, "missing"),
        (record(content=tlv(5, number(0, 4) + tlv(1, b"") + b"\0")), 86, "trailing_data"),
        (record(content=tlv(4, b"")), 75, "truncated"),
        (record(content=tlv(4, number(3, 1))), 75, "wrong_value"),
        (record(content=tlv(4, tlv(2, b"\0"))), 75, "wrong_size"),
        (record(content=tlv(4, number(81, 3))), 80, "wrong_value"),
        (record(content=tlv(4, tlv(1, number(0, 1)))), 86, "truncated"),
        (record(content=tlv(4, tlv(1, number(0, 1) + number(1, 1) + b"\0"))), 92, "trailing_data"),
        (record()[:-5] + b"\xff\xff\xff\xff\0", 82, "truncated"),
    ],
)
def test_from_cel_of_invalid_tlv_fails(log: bytes, offset: int, reason: str) -> None:
    """Wrong types, wrong sizes of numbers and digests, and trailing bytes are rejected."""
    with raises(FormatError, reason, offset=offset):
        EventLog.from_cel(log)


@every_case(
    ("log", "reason", "offset"),
    [
        (EXAMPLE["cbor"] + b"\0", "trailing_data", len(EXAMPLE["cbor"])),
        (b"\x80\0", "trailing_data", 1),
        (b"\x9f" + cbor(cbor_record()) + b"\xff", "not_canonical", 0),
        (cbor(cbor_record(), 0), "wrong_type", len(cbor(cbor_record()))),
        (cbor([[]]), "wrong_type", 1),
        (cbor([{0: 0}]), "wrong_size", 1),
        (cbor([{**cbor_record(), 11: 0}]), "wrong_size", 1),
        (cbor([{2: 1, **{k: v for k, v in cbor_record().items() if k != 1}}]), "other_log", 4),
        (cbor([{2: 1, **{k: v for k, v in cbor_record().items() if k != 9}}]), "inconsistent", 6),
        (cbor([{8: 1, **{k: v for k, v in cbor_record().items() if k != 0}}]), "missing", 2),
        (cbor([{8: 1, **{k: v for k, v in cbor_record().items() if k != 3}}]), "missing", 6),
        (cbor([cbor_record({3: [{0: 12, 1: DIGEST[1:]}]})]), "wrong_size", 8),
        (cbor([cbor_record({3: {}})]), "wrong_type", 7),
        (cbor([cbor_record({9: "cel"})]), "wrong_type", 63),
        (cbor([cbor_record({9: 7})]), "other_log", 63),
        (cbor([cbor_record({10: {0: "ev_nothing", 1: b""}})]), "event_type", 67),
        (cbor([cbor_record({10: {0: 2**32, 1: b""}})]), "event_type", 67),
        (cbor([cbor_record({10: {0: 4, 1: "text"}})]), "wrong_type", 69),
        (cbor([cbor_record({9: 4, 10: {0: 1}})]), "wrong_size", 67),
        (cbor([cbor_record({9: 4, 10: []})]), "wrong_type", 65),
        (cbor([cbor_record({9: 4, 10: {0: 81, 1: 3}})]), "wrong_value", 70),
    ],
)
def test_from_cel_of_invalid_cbor_fails(log: bytes, reason: str, offset: int) -> None:
    """Wrong keys, key order, types and non-deterministic encodings are rejected."""
    with raises(FormatError, reason, offset=offset):
        EventLog.from_cel(log)


@every_case(
    ("log", "reason", "subject"),
    [
        (b"[1]", "wrong_type", "record"),
        (b'[{"recnum":0,"recnum":0}]', "duplicate", "recnum"),
        (EXAMPLE["json"] + b",", "trailing_data", "CEL record 1"),
        (EXAMPLE["json"][:-1], "syntax", "CEL record 1"),
        (b"[NaN]", "syntax", "CEL record 0"),
        (b"[" + b"9" * 5000 + b"]", "too_large", "CEL record 0"),
        (b"[" * 201, "too_deep", ""),
        (b"[\xff", "encoding", ""),
        (text(more=1), "unknown_field", "more"),
        (text(nv_index=1), "inconsistent", "nv_index"),
        (text(recnum=True), "wrong_type", "recnum"),
        (text(recnum=-1), "wrong_value", "recnum"),
        (text(recnum=None), "missing", "recnum"),
        (text(pcr="2"), "wrong_type", "pcr"),
        (text(digests={}), "wrong_type", "digests"),
        (text(digests=[{}]), "missing", "digest"),
        (text(digests=[{"hashAlg": "sha3_384", "digest": ""}]), "unsupported_algorithm", ""),
        (text(digests=[{"hashAlg": 12, "digest": "zz"}]), "encoding", "digest"),
        (text(content_type=None), "missing", "content_type"),
        (text(content=None), "wrong_type", "content"),
        (text(content={"event_type": 4, "event_data": "0"}), "encoding", "event_data"),
        (text(content={"event_type": 2**32, "event_data": ""}), "event_type", ""),
        (text(content={"event_type": "ev_\u212a", "event_data": ""}), "event_type", ""),
        (text(content_type="cel", content=[]), "missing", "management"),
        (text(content_type="cel", content={"type": 2, "data": 0}), "unknown_field", "management"),
        (text(content_type="cel", content={"type": 1, "data": 0}), "wrong_type", "cel_version"),
        (text(content_type=4, content={"type": 81, "data": "off"}), "wrong_value", "transition"),
        (b"\x1e{}{}", "missing", "content_type"),
        (b"\x1e" + EXAMPLE["json"][1:-1] + b"{}", "syntax", "CEL record 1"),
    ],
)
def test_from_cel_of_invalid_json_fails(log: bytes, reason: str, subject: str) -> None:
    """Malformed JSON, duplicate or unknown members, and invalid numbers and names are rejected."""
    with raises(FormatError, reason) as caught:
        EventLog.from_cel(log)
    assert caught.value.offset is not None
    assert subject in caught.value.message


def test_from_cel_json_error_offset_counts_utf8_bytes() -> None:
    """The offset of an error counts bytes of UTF-8, also if text was given."""
    name = json.dumps([{"content_type": "\N{EURO SIGN}" * 9}], ensure_ascii=False)
    invalid = EXAMPLE["json"][:-1].decode() + ", " + name[1:]
    with raises(FormatError, "wrong_value", offset=invalid.encode().index(b'{"content_type":')):
        EventLog.from_cel(invalid)
    with pytest.raises(FormatError) as caught:
        EventLog.from_cel(invalid[:-3])
    assert caught.value.offset is not None
    assert caught.value.offset <= len(invalid.encode())


@every_case(
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
def test_parse_accepts_names_and_numbers_of_types(changed: dict[str, Any]) -> None:
    """Types and algorithms may be numbers, or names in upper or lower case."""
    log = text(**changed)
    assert EventLog.parse(log) == EventLog.parse(EXAMPLE["json"])
    assert EventLog.parse(log).to_cel("json") == EXAMPLE["json"]


@pytest.mark.parametrize(
    "name", ["ev_efi_platform_firmwate_blob2", "EV_EFI_PLATFORM_FIRMWARE_BLOB2"]
)
def test_parse_accepts_misspelled_libcel_type(name: str) -> None:
    """The misspelled type name of libcel is accepted, and written correctly."""
    for log in (
        text(content={"event_type": name, "event_data": ""}),
        cbor([cbor_record({10: {0: name, 1: b""}})]),
    ):
        found = EventLog.parse(log)
        assert found.events[0].event_type == 0x8000000A
        assert b'"ev_efi_platform_firmware_blob2"' in found.to_cel("json")


def test_parse_accepts_cbor_and_json_sequences() -> None:
    """CBOR sequences (RFC 8742) and JSON text sequences (RFC 7464) are read."""
    records = cbor2.loads(WRITTEN["cbor"])
    whole = EventLog.parse(WRITTEN["cbor"])
    assert EventLog.parse(cbor(*records)) == whole
    texts = [json.dumps(one).encode() for one in json.loads(WRITTEN["json"])]
    for between in (b"\x1e", b"\n\x1e", b"\n\x1e \x1e"):
        sequence = b"\x1e" + between.join(texts) + b"\n"
        assert EventLog.parse(sequence) == EventLog.parse("\n" + sequence.decode()) == whole


@every_case(
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
def test_parse_accepts_json_management_records(kind: str | int, data: Any) -> None:
    """In JSON a management record has a name or number, one statement or an array."""
    statement = {"type": kind} | ({} if data is None else {"data": data})
    for content in (statement, [statement, {"type": 2}]):
        log = text(content_type="cel", content=content, digests=[])
        assert EventLog.parse(log) == EventLog()


@every_case("content", [{0: 1, 1: {0: 1, 1: 1}}, {0: 2}, {0: 80, 1: 5}, {0: 81, 1: 0}])
def test_parse_accepts_cbor_management_records(content: dict[int, Any]) -> None:
    """All four management types are read in CBOR."""
    log = cbor([cbor_record({3: [], 9: 4, 10: content})])
    assert EventLog.parse(log) == EventLog()


def test_from_cel_over_limits_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log has at most 16 MiB and 65,536 records; the error names the first excess record."""
    assert (cel.MAX_SIZE, cel.MAX_RECORDS) == (1 << 24, 65_536)
    for data in (bytes((1 << 24) + 1), " " * ((1 << 24) + 1)):
        with raises(FormatError, "too_long"):
            EventLog.from_cel(data)
    monkeypatch.setattr(cel, "MAX_RECORDS", len(FULL.events) - 1)
    for written in WRITTEN.values():
        with raises(FormatError, "too_many_records", part=f"CEL record {len(FULL.events) - 1}:"):
            EventLog.from_cel(written)


def test_from_cel_of_other_bytes_fails() -> None:
    """Data that start like none of the three encodings are rejected."""
    for data in (b"\1", b"{", b"\xff", b"x"):
        with raises(FormatError, "unrecognized", offset=0):
            EventLog.from_cel(data)
    with raises(FormatError, "syntax", offset=0):
        EventLog.from_cel("")


def test_parse_accepts_any_order_of_json_members() -> None:
    """A JSON record is read even if its first members could belong to an agent event."""
    members = json.loads(EXAMPLE["json"])[0]
    reordered = json.dumps([dict(sorted(members.items()))])
    assert detect_encoding(reordered.encode()) is None
    assert EventLog.parse(reordered) == EventLog.parse(EXAMPLE["json"])


def test_other_readers_of_cel_name_the_format() -> None:
    """The CCEL and agent JSON readers reject a CEL as another kind of log."""
    for encoding in ("tlv", "cbor"):
        with raises(FormatError, "other_log", part=encoding):
            EventLog.from_ccel(EXAMPLE[encoding])
    with raises(FormatError, "other_log"):
        EventLog.from_json(EXAMPLE["json"])
