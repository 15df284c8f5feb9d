"""TD reports are parsed field by field, and their two hashes are verified."""

import json
import pickle
from hashlib import sha384
from typing import Any

import pytest

from attestkit.errors import FormatError, UsageError
from attestkit.quote import TdQuoteBody
from attestkit.td_report import TdReport
from tests.raising import raises
from tests.runner.cases import every_case
from tests.samples.quotes import PATTERN
from tests.untyped import untyped, with_false_length
from tests.vectors import data, load, needs_shared, path_of

VECTORS: list[dict[str, Any]] = load("quotes.json").get("tdreports", [])
GOOD = [v for v in VECTORS if v["valid_tdreport"]]
BAD = [v for v in VECTORS if not v["valid_tdreport"]]

# Bytes reserved in every version, by range.
RESERVED = [(3, 16), (192, 224), (400, 512)]


def update_hashes(report: bytearray) -> bytes:
    """Set the two hashes of a report, as a TDX module does."""
    report[32:80] = sha384(report[256:495]).digest()
    report[80:128] = sha384(report[512:1024]).digest()
    return bytes(report)


def make_report(version: int = 0, valid: int = 0x1FF) -> bytearray:
    """Return a report with every field filled that `version` and `valid` allow."""
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


def rejection_of(report: bytes) -> tuple[str, int | None]:
    """Return reason and offset with which a report is rejected."""
    with pytest.raises(FormatError) as caught:
        TdReport.parse(report)
    return caught.value.reason, caught.value.offset


@needs_shared
@pytest.mark.parametrize("vector", GOOD, ids=path_of)
def test_td_report_of_hardware_matches_vector(vector: dict[str, Any]) -> None:
    """A captured report has the listed fields."""
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
            ours = "mrtd" if name == "mr_td" else name  # the vectors have upstream's name
            assert getattr(report, ours).hex() == value
    assert report.rtmrs == (report.rtmr0, report.rtmr1, report.rtmr2, report.rtmr3)
    assert report.raw == data(vector["path"])


@needs_shared
@pytest.mark.parametrize("vector", BAD, ids=path_of)
def test_td_report_of_other_bytes_fails(vector: dict[str, Any]) -> None:
    """1024 other bytes are rejected at their first byte."""
    assert rejection_of(data(vector["path"])) == ("wrong_value", 0)


@every_case("version", [0, 1, 3])
@every_case("valid", [0x1FF, 0x301FF])
def test_td_report_fields_of_every_version(version: int, valid: int) -> None:
    """Each version has its fields at their offsets; absent fields are zero."""
    raw = update_hashes(make_report(version, valid))
    report = TdReport.parse(raw)
    assert (report.version, report.valid) == (version, valid)
    assert report.cpu_svn == raw[16:32]
    assert report.report_data == raw[128:192]
    assert report.mac == raw[224:256]
    assert report.tee_tcb_svn == raw[264:280]
    assert any(report.tee_tcb_svn2) == (valid == 0x301FF)
    assert report.td_attributes == raw[512:520]
    assert report.xfam == raw[520:528]
    assert report.mrtd == raw[528:576]
    assert b"".join(report.rtmrs) == raw[720:912]
    assert any(report.mr_service_td) == (version > 0)
    assert (report.td_id, report.vmid, report.td_info_valid) == (
        (raw[960:992], 2, 0x301) if version == 3 else (bytes(32), 0, 0)
    )
    assert pickle.loads(pickle.dumps(report)) == report


@pytest.mark.parametrize("extended", [False, True])
def test_td_report_matches_body_of_its_quote(extended: bool) -> None:
    """A quote has the TD fields of its report."""
    report = TdReport.parse(update_hashes(make_report(1, 0x301FF)))
    body = TdQuoteBody.parse(report.quote_body(extended=extended))
    for name in TdQuoteBody._fields:
        if extended or name not in ("tee_tcb_svn2", "mr_service_td"):
            assert getattr(body, name) == getattr(report, name)
        else:
            assert getattr(body, name) is None


def test_td_report_of_wrong_size_fails() -> None:
    """A truncated report and trailing bytes are rejected."""
    report = update_hashes(make_report()) * 2
    for size in (*range(1024), 1025, 2048):
        assert rejection_of(report[:size]) == ("wrong_size", min(size, 1024))


@every_case(
    ("offset", "value", "reason", "field"),
    [
        (0, 0x80, "wrong_value", 0),
        (1, 1, "wrong_value", 1),
        (2, 2, "unsupported_version", 2),
        (2, 4, "unsupported_version", 2),
        (258, 1, "wrong_value", 256),
    ],
)
def test_td_report_with_undefined_value_fails(
    offset: int, value: int, reason: str, field: int
) -> None:
    """An undefined type, version or set of valid fields is rejected."""
    report = make_report(0, 0x301FF)
    report[offset] = value
    assert rejection_of(update_hashes(report)) == (reason, field)


@every_case("version", [0, 1, 3])
@every_case("valid", [0x1FF, 0x301FF])
def test_td_report_with_reserved_byte_set_fails(version: int, valid: int) -> None:
    """Each reserved byte of a version must be zero, even with a valid hash."""
    ranges = [*RESERVED]
    if valid == 0x1FF:
        ranges.append((384, 400))
    if version == 0:
        ranges.append((912, 960))
    ranges += [(992, 1016), (1017, 1020)] if version == 3 else [(960, 1024)]
    for offset in (offset for start, end in ranges for offset in range(start, end)):
        report = make_report(version, valid)
        report[offset] = 0x80
        assert rejection_of(update_hashes(report)) == ("wrong_value", offset)


def test_td_report_with_changed_hashed_byte_fails() -> None:
    """A change of any byte covered by a hash is detected."""
    raw = update_hashes(make_report(3, 0x301FF))
    covered = {32: [*range(32, 80), *range(264, 400)]}
    covered[80] = [*range(80, 128), *range(512, 992), *range(1020, 1024)]
    for field, offsets in covered.items():
        for offset in offsets:
            report = bytearray(raw)
            report[offset] ^= 1
            assert rejection_of(bytes(report)) == ("inconsistent", field)


@every_case("report", ["00", bytearray(1024), None, with_false_length(b"\x81", 1024)])
def test_td_report_of_other_type_is_usage_error(report: object) -> None:
    """A report is bytes."""
    with raises(UsageError, "wrong_type"):
        TdReport.parse(untyped(report))


def test_td_report_to_dict_and_repr() -> None:
    """A report can be written as JSON, and as one short line."""
    report = TdReport.parse(update_hashes(make_report(1, 0x301FF)))
    fields = json.loads(json.dumps(report.to_dict()))
    assert fields["version"] == 1
    assert fields["mrtd"] == report.mrtd.hex()
    assert "raw" not in fields
    assert repr(report) == f"<TdReport v1, report_data {report.report_data[:8].hex()}...>"
