"""SEV-SNP reports are parsed field by field, each version by its own rules."""

import json
import pickle
from typing import Any

import pytest

from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit.errors import FormatError, UsageError
from attestkit.snp_report import SnpReport, SnpTcb
from tests.raising import raises
from tests.runner.cases import every_case
from tests.samples.quotes import PATTERN
from tests.untyped import untyped, with_false_length
from tests.vectors import data, load, needs_shared, path_of

VECTORS: list[dict[str, Any]] = load("quotes.json").get("snp_reports", [])

# Vector names that differ from attestkit's.
NAMES = {
    "signature_algo": "signature_algorithm",
    "author_key_en": "author_key_enabled",
    "mask_chip_key": "chip_key_masked",
    "signature_r_le72": "signature_r",
    "signature_s_le72": "signature_s",
}
NOT_FIELDS = {
    "path",
    "offset_of_report",
    "report_sha256",
    "signing_cert",
    "signing_key",
    "zero_checks",
    "signature_ok_over_first_0x2a0_bytes",
    "current_version",
    "committed_version",
}


def read_sample(vector: dict[str, Any]) -> bytes:
    """Return the report in a vector's file."""
    content = data(vector["path"])
    if vector["path"].endswith(".hex"):
        content = bytes.fromhex(content.decode().strip())
    start: int = vector["offset_of_report"]
    return content[start : start + 1184]


def reserved_ranges(version: int) -> list[tuple[int, int]]:
    """Return the ranges that must be zero in a version."""
    ranges = [(0x4C, 0x50), (0x1EB, 0x1EC), (0x1EF, 0x1F0), (0x208, 0x2A0), (0x330, 0x4A0)]
    ranges.append((0x188 if version == 2 else 0x18B, 0x1A0))
    return ranges if version == 5 else [*ranges, (0x1F8, 0x208)]


def make_report(version: int = 5, family: int = 0x1A, model: int = 0x02) -> bytearray:
    """Return a report with every field filled that `version` allows."""
    report = bytearray((PATTERN[1:252] * 5)[:1184])
    report[:4] = (version, 0, 0, 0)
    report[0x8:0x10] = (0x03_00_1F).to_bytes(8, "little")
    report[0x30:0x38] = (1, 0, 0, 0, 1, 0, 0, 0)
    report[0x48:0x4C] = (0b00111, 0, 0, 0)
    report[0x188:0x18B] = (family, model, 1)
    for start in (0x38, 0x180, 0x1E0, 0x1F0):
        report[start : start + 8] = bytes((1, 2, 3, 4, 0, 0, 0, 8))
    for start in (0x2A0 + 48, 0x2E8 + 48):
        report[start : start + 24] = bytes(24)
    for start, end in reserved_ranges(version):
        report[start:end] = bytes(end - start)
    return report


def rejection_of(report: bytes) -> tuple[str, int | None]:
    """Return reason and offset with which a report is rejected."""
    with pytest.raises(FormatError) as caught:
        SnpReport.parse(report)
    return caught.value.reason, caught.value.offset


@needs_shared
@pytest.mark.parametrize("vector", VECTORS, ids=path_of)
def test_snp_report_of_hardware_matches_vector(vector: dict[str, Any]) -> None:
    """A captured report has the listed fields."""
    report = SnpReport.parse(read_sample(vector))
    for name, value in vector.items():
        if name in NOT_FIELDS:
            continue
        field = getattr(report, NAMES.get(name, name))
        if isinstance(field, bytes):
            assert field.hex() == value
        else:
            assert field == (int(value, 16) if isinstance(value, str) else value)
    assert report.signing_key == ("VCEK", "VLEK")[vector["signing_key"]]
    current = f"{report.current_major}.{report.current_minor}.{report.current_build}"
    assert current == vector["current_version"]
    committed = f"{report.committed_major}.{report.committed_minor}.{report.committed_build}"
    assert committed == vector["committed_version"]
    assert report.product == ("Milan" if report.version == 3 else None)
    tcb = report.tcb(product="Milan")
    raw = bytes.fromhex(vector["reported_tcb"])
    assert tcb == SnpTcb(boot_loader=raw[0], tee=raw[1], snp=raw[6], microcode=raw[7])


@needs_shared
@pytest.mark.parametrize("vector", VECTORS, ids=path_of)
def test_snp_report_signature_is_valid(vector: dict[str, Any]) -> None:
    """The signature is returned in big-endian order, over the signed bytes."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA384
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    report = SnpReport.parse(read_sample(vector))
    content = data(vector["signing_cert"])
    der = split_pem(content.decode())[0] if content.startswith(b"--") else content
    key = load_der_public_key(read_path_certificate(der).spki)
    assert isinstance(key, EllipticCurvePublicKey)
    r, s = (int.from_bytes(report.signature[i : i + 48], "big") for i in (0, 48))
    key.verify(encode_dss_signature(r, s), report.signed_region, ECDSA(SHA384()))


@every_case("version", [2, 3, 4, 5])
def test_snp_report_fields_of_every_version(version: int) -> None:
    """Each version has its fields at their offsets; absent fields are zero."""
    raw = bytes(make_report(version))
    report = SnpReport.parse(raw)
    assert report.version == version
    assert (report.policy, report.vmpl, report.key_info) == (0x3001F, 1, 7)
    assert (report.signing_key, report.chip_key_masked, report.author_key_enabled) == (
        "VLEK",
        True,
        True,
    )
    assert report.report_data == raw[0x50:0x90]
    assert report.measurement == raw[0x90:0xC0]
    assert report.host_data == raw[0xC0:0xE0]
    assert report.report_id_ma == raw[0x160:0x180]
    cpuid = (report.cpuid_family, report.cpuid_model, report.cpuid_stepping)
    assert cpuid == ((0, 0, 0) if version == 2 else (0x1A, 2, 1))
    assert report.chip_id == raw[0x1A0:0x1E0]
    assert (report.current_build, report.committed_major) == (raw[0x1E8], raw[0x1EE])
    assert bool(report.launch_mit_vector) == bool(report.current_mit_vector) == (version == 5)
    assert report.signature == raw[0x2A0:0x2D0][::-1] + raw[0x2E8:0x318][::-1]
    assert report.signed_region == raw[:0x2A0]
    assert pickle.loads(pickle.dumps(report)) == report


@every_case(
    ("family", "model", "product"),
    [
        (0x19, 0x00, "Milan"),
        (0x19, 0x0F, "Milan"),
        (0x19, 0x10, "Genoa"),
        (0x19, 0x1F, "Genoa"),
        (0x19, 0x20, None),
        (0x19, 0xA0, "Genoa"),
        (0x19, 0xAF, "Genoa"),
        (0x19, 0xB0, None),
        (0x1A, 0x00, "Turin"),
        (0x1A, 0x11, "Turin"),
        (0x1A, 0x12, None),
        (0x1A, 0x50, "Venice"),
        (0x1A, 0x57, "Venice"),
        (0x1A, 0x58, None),
        (0x1A, 0x90, "Venice"),
        (0x1A, 0xAF, "Venice"),
        (0x1A, 0xC7, "Venice"),
        (0x1A, 0xC8, None),
        (0x17, 0x31, None),
    ],
)
def test_snp_report_product_follows_from_cpu(family: int, model: int, product: str | None) -> None:
    """The product follows from the CPU's family and model if the report has them."""
    assert SnpReport.parse(bytes(make_report(3, family, model))).product == product
    assert SnpReport.parse(bytes(make_report(2, family, model))).product is None


def test_snp_report_tcb_layout_depends_on_product() -> None:
    """The same eight bytes have other fields on another product."""
    turin = SnpReport.parse(bytes(make_report()))
    assert turin.tcb() == SnpTcb(fmc=1, boot_loader=2, tee=3, snp=4, microcode=8)
    for which in ("current", "reported", "committed", "launch"):
        assert turin.tcb(which) == turin.tcb()
    assert turin.tcb(product="Milan") == turin.tcb()  # the report's own product takes precedence
    milan = SnpTcb.parse(bytes((1, 2, 0, 0, 0, 0, 7, 8)), "Milan")
    assert milan == SnpTcb(fmc=None, boot_loader=1, tee=2, snp=7, microcode=8)
    assert SnpTcb.parse(bytes(8), "Genoa") == SnpTcb(0, 0, 0, 0)
    assert SnpTcb.parse(bytes(8), "Venice") == SnpTcb(0, 0, 0, 0, 0)


def test_snp_report_tcb_of_unknown_product_fails() -> None:
    """A TCB version is not read without a known product."""
    old = SnpReport.parse(bytes(make_report(2)))
    with raises(UsageError, "missing"):
        old.tcb()
    with raises(UsageError, "unknown_name"):
        old.tcb("other")
    with raises(UsageError, "unknown_name"):
        old.tcb(product="Rome")
    with raises(FormatError, "wrong_value", offset=2):
        old.tcb(product="Milan")  # bytes 2 and 3 are reserved on Milan
    with pytest.raises(UsageError):
        SnpTcb.parse(bytes(7), "Milan")


def test_snp_report_of_wrong_size_fails() -> None:
    """A truncated report and trailing bytes are rejected."""
    for size in (*range(1184), 1185, 2368):
        assert rejection_of((bytes(make_report()) * 2)[:size]) == ("wrong_size", min(size, 1184))


@every_case(
    ("offset", "value", "reason", "at"),
    [
        (0, 1, "unsupported_version", 0),
        (0, 6, "unsupported_version", 0),
        (3, 1, "unsupported_version", 0),
        (0x34, 2, "unsupported_algorithm", 0x34),
        (0x0A, 1, "wrong_value", 0x08),
        (0x0B, 0b100, "wrong_value", 0x08),
        (0x0F, 0x80, "wrong_value", 0x08),
        (0x48, 0b01000, "wrong_value", 0x48),
        (0x48, 0b11100, "wrong_value", 0x48),
        (0x48, 0b100000, "wrong_value", 0x48),
        (0x4B, 1, "wrong_value", 0x48),
        (0x2D0, 1, "wrong_value", 0x2D0),
        (0x2E7, 1, "wrong_value", 0x2D0),
        (0x318, 1, "wrong_value", 0x318),
        (0x32F, 1, "wrong_value", 0x318),
        (0x30, 4, "wrong_value", 0x30),
        (0x33, 0xFF, "wrong_value", 0x30),
    ],
)
def test_snp_report_with_invalid_value_fails(offset: int, value: int, reason: str, at: int) -> None:
    """An invalid value is rejected with its reason, at its field."""
    report = make_report()
    report[offset] = value
    assert rejection_of(bytes(report)) == (reason, at)


def test_snp_report_policy_has_26_bits() -> None:
    """Bit 25 of the guest policy is the highest that is not reserved."""
    for bit in range(26, 64):
        report = make_report()
        report[0x08 + bit // 8] |= 1 << bit % 8
        assert rejection_of(bytes(report)) == ("wrong_value", 0x08), bit
    report = make_report()
    report[0x0B] = 0b11
    assert SnpReport.parse(bytes(report)).policy >> 24 == 0b11


@every_case("version", [2, 3, 4, 5])
def test_snp_report_with_reserved_byte_set_fails(version: int) -> None:
    """Each reserved byte of a version must be zero."""
    for offset in (
        offset for start, end in reserved_ranges(version) for offset in range(start, end)
    ):
        report = make_report(version)
        report[offset] = 0x80
        assert rejection_of(bytes(report)) == ("wrong_value", offset)


@every_case("report", ["00", bytearray(1184), None, with_false_length(b"\x81", 1184)])
def test_snp_report_of_other_type_is_usage_error(report: object) -> None:
    """A report is bytes."""
    with raises(UsageError, "wrong_type"):
        SnpReport.parse(untyped(report))


def test_snp_report_to_dict_and_repr() -> None:
    """A report can be written as JSON, and as one short line."""
    report = SnpReport.parse(bytes(make_report()))
    fields = json.loads(json.dumps(report.to_dict()))
    assert fields["version"] == 5
    assert fields["measurement"] == report.measurement.hex()
    assert "raw" not in fields
    start = report.report_data[:8].hex()
    assert repr(report) == f"<SnpReport v5, VLEK, report_data {start}...>"
