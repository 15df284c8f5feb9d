"""A TD report says what its bytes say, and its two hashes hold."""

import json
import pickle
from hashlib import sha384
from typing import Any

import pytest
from hypothesis import strategies as st

from attestkit.errors import AttestKitError, FormatError, UsageError
from attestkit.quote import TdQuoteBody
from attestkit.td_report import TdReport
from tests.quotes import PATTERN
from tests.thorough import thorough
from tests.untyped import untyped
from tests.vectors import data, load, needs_shared

VECTORS: list[dict[str, Any]] = load("quotes.json").get("tdreports", [])
GOOD = [v for v in VECTORS if v["valid_tdreport"]]
BAD = [v for v in VECTORS if not v["valid_tdreport"]]

# Bytes that are reserved whatever the version, by range.
RESERVED = [(3, 16), (192, 224), (400, 512)]


def path_of(vector: dict[str, Any]) -> str:
    """Return the name of a vector, for pytest."""
    return str(vector["path"])


def hashed(report: bytearray) -> bytes:
    """Put the two hashes of a report right, as a TDX module would."""
    report[32:80] = sha384(report[256:495]).digest()
    report[80:128] = sha384(report[512:1024]).digest()
    return bytes(report)


def made(version: int = 0, valid: int = 0x1FF) -> bytearray:
    """Return a report of which every field that `version` and `valid` allow is filled."""
    report = bytearray(PATTERN)
    report[:4] = (0x81, 0, version, 0)
    report[4:16] = bytes(12)
    report[192:224] = bytes(32)
    report[256:264] = valid.to_bytes(8, "little")
    report[400:512] = bytes(112)
    if valid == 0x1FF:
        report[384:400] = bytes(16)
    if version == 0:
        report[912:960] = bytes(48)
    if version < 3:
        report[960:] = bytes(64)
    else:
        report[992:1016] = bytes(24)
        report[1016:] = (2, 0, 0, 0, 1, 3, 0, 0)
    return report


def refused(report: bytes) -> tuple[str, int | None]:
    """Return reason and byte with which a report is refused."""
    with pytest.raises(FormatError) as caught:
        TdReport.parse(report)
    return caught.value.reason, caught.value.offset


@needs_shared
@pytest.mark.parametrize("vector", GOOD, ids=path_of)
def test_every_listed_field(vector: dict[str, Any]) -> None:
    """A real report has the fields that were listed for it."""
    report = TdReport.parse(data(vector["path"]))
    assert report.version == vector["report_type"]["version"]
    for name in ("cpu_svn", "tee_tcb_info_hash", "tee_info_hash", "report_data", "mac"):
        assert getattr(report, name).hex() == vector[name]
    tcb, info = dict(vector["tee_tcb_info"]), dict(vector["td_info"])
    assert report.valid.to_bytes(8, "little").hex() == tcb.pop("valid")
    assert report.seam_attributes.hex() == tcb.pop("attributes")
    assert report.td_attributes.hex() == info.pop("attributes")
    assert report.mr_service_td.hex() == info.pop("servtd_hash")
    for name, value in {**tcb, **info}.items():
        if name != "reserved_zero":
            assert getattr(report, name).hex() == value
    assert report.rtmrs == (report.rtmr0, report.rtmr1, report.rtmr2, report.rtmr3)
    assert report.mrtd == report.mr_td
    assert report.raw == data(vector["path"])


@needs_shared
@pytest.mark.parametrize("vector", BAD, ids=path_of)
def test_made_up_bytes_are_refused(vector: dict[str, Any]) -> None:
    """1024 bytes that are no report are refused at their first byte."""
    assert refused(data(vector["path"])) == ("type", 0)


@pytest.mark.parametrize("version", [0, 1, 3])
@pytest.mark.parametrize("valid", [0x1FF, 0x301FF])
def test_fields_lie_where_they_should(version: int, valid: int) -> None:
    """Each version has its fields at their places; what it does not have is zero."""
    raw = hashed(made(version, valid))
    report = TdReport.parse(raw)
    assert (report.version, report.valid) == (version, valid)
    assert report.cpu_svn == raw[16:32]
    assert report.report_data == raw[128:192]
    assert report.mac == raw[224:256]
    assert report.tee_tcb_svn == raw[264:280]
    assert any(report.tee_tcb_svn2) == (valid == 0x301FF)
    assert report.td_attributes == raw[512:520]
    assert report.xfam == raw[520:528]
    assert report.mr_td == raw[528:576]
    assert b"".join(report.rtmrs) == raw[720:912]
    assert any(report.mr_service_td) == (version > 0)
    assert (report.td_id, report.vmid, report.td_info_valid) == (
        (raw[960:992], 2, 0x301) if version == 3 else (bytes(32), 0, 0)
    )
    assert pickle.loads(pickle.dumps(report)) == report


@pytest.mark.parametrize("extended", [False, True])
def test_body_of_its_quote(extended: bool) -> None:
    """A quote says of a TD what its report says."""
    report = TdReport.parse(hashed(made(1, 0x301FF)))
    body = TdQuoteBody.parse(report.quote_body(extended=extended))
    for name in TdQuoteBody._fields:
        if extended or name not in ("tee_tcb_svn2", "mr_service_td"):
            assert getattr(body, name) == getattr(report, name)
        else:
            assert getattr(body, name) is None


def test_other_sizes() -> None:
    """A report cut at any length, or with something after it, is refused."""
    report = hashed(made()) * 2
    for size in (*range(1024), 1025, 2048):
        assert refused(report[:size]) == ("size", min(size, 1024))


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [(0, 0x80, "type"), (1, 1, "subtype"), (2, 2, "version"), (2, 4, "version"), (258, 1, "valid")],
)
def test_values(offset: int, value: int, reason: str) -> None:
    """A type, version or set of valid fields that nobody has defined is refused."""
    report = made(0, 0x301FF)
    report[offset] = value
    assert refused(hashed(report)) == (reason, 256 if reason == "valid" else offset)


@pytest.mark.parametrize("version", [0, 1, 3])
@pytest.mark.parametrize("valid", [0x1FF, 0x301FF])
def test_reserved_bytes(version: int, valid: int) -> None:
    """Each byte that a version does not use must be zero, also under a right hash."""
    ranges = [*RESERVED]
    if valid == 0x1FF:
        ranges.append((384, 400))
    if version == 0:
        ranges.append((912, 960))
    ranges += [(992, 1016), (1017, 1020)] if version == 3 else [(960, 1024)]
    for offset in (offset for start, end in ranges for offset in range(start, end)):
        report = made(version, valid)
        report[offset] = 0x80
        assert refused(hashed(report)) == ("reserved", offset)


def test_every_hashed_byte() -> None:
    """Change any byte that a hash covers and the report is refused."""
    raw = hashed(made(3, 0x301FF))
    covered = {"tee_tcb_info_hash": [*range(32, 80), *range(264, 400)]}
    covered["tee_info_hash"] = [*range(80, 128), *range(512, 992), *range(1020, 1024)]
    for reason, offsets in covered.items():
        for offset in offsets:
            report = bytearray(raw)
            report[offset] ^= 1
            assert refused(bytes(report)) == (reason, 32 if "tcb" in reason else 80)


@pytest.mark.parametrize("report", ["00", bytearray(1024), None])
def test_only_bytes(report: object) -> None:
    """A report is bytes; anything else is a mistake of the caller."""
    with pytest.raises(UsageError, match="a TD report is bytes, not"):
        TdReport.parse(untyped(report))


def test_as_dictionary_and_text() -> None:
    """A report can be shown as JSON, and as one short line."""
    report = TdReport.parse(hashed(made(1, 0x301FF)))
    fields = json.loads(json.dumps(report.to_dict()))
    assert fields["version"] == 1
    assert fields["mr_td"] == report.mr_td.hex()
    assert "raw" not in fields
    assert repr(report) == f"<TdReport v1, report_data {report.report_data[:8].hex()}...>"


@thorough(
    st.one_of(st.binary(max_size=32), st.binary(min_size=32, max_size=64).map(lambda b: b * 32)),
    few=200,
    many=1000,
)
def test_any_bytes(report: bytes) -> None:
    """Whatever bytes come, only our own errors come out."""
    with pytest.raises(AttestKitError):
        TdReport.parse(report)


def test_lying_subclass_of_bytes() -> None:
    """A subclass of bytes that lies about its length is not let in."""

    class Lying(bytes):
        def __len__(self) -> int:
            return 1024

    with pytest.raises(UsageError):
        TdReport.parse(Lying(b"\x81"))
