"""Claims of an SEV-SNP guest are the fields of its report."""

from typing import Final

import pytest

from attestkit.snp_report import SnpReport
from attestkit.verifier.evidence.platform_claims import report_claims
from tests.verifier.platforms import amd

NUMBERS: Final = {
    **dict.fromkeys(("policy", "platform_info", "launch_mit_vector", "current_mit_vector"), 8),
    **dict.fromkeys(("guest_svn", "vmpl", "key_info"), 4),
}
PLAIN: Final = (
    *("family_id", "image_id", "id_key_digest", "report_id", "report_id_ma", "chip_id"),
    *("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"),
)


def distinct_report(*, author_key: bool) -> SnpReport:
    """Return a report of version 5 in whose fields neighbouring bytes differ."""
    changes = {
        0x004: bytes(range(1, 5)),  # guest_svn
        0x010: bytes(range(32)),
        0x038: bytes(range(40, 48)),
        0x040: bytes(range(50, 58)),  # platform_info
        0x048: bytes([author_key]),
        0x090: bytes(range(100, 180)),  # measurement and host_data
        0x0E0: bytes(range(96)),
        0x140: bytes(range(100, 164)),
        0x180: bytes(range(60, 68)),
        0x188: b"\x19\x01\x02",
        0x1A0: bytes(range(80, 144)),
        0x1E0: bytes(range(1, 12)),  # committed_tcb and current version
        0x1EC: bytes(range(21, 24)),
        0x1F0: bytes(range(70, 94)),  # launch_tcb and mitigation vectors
    }
    return SnpReport.parse(amd.report(changes, version=5))


@pytest.mark.parametrize("author_key", [False, True])
def test_snp_claims_are_fields_of_report(*, author_key: bool) -> None:
    """Registers and attributes have the bytes of the fields that they are named after."""
    report = distinct_report(author_key=author_key)
    found, attributes = map(dict, report_claims(report))
    assert found == {"measurement": report.measurement, "host_data": report.host_data}
    expected = {name: getattr(report, name) for name in PLAIN}
    for name, size in NUMBERS.items():
        expected[name] = getattr(report, name).to_bytes(size, "little")
    expected["report_version"] = report.version.to_bytes(4, "little")
    expected["author_key_digest"] = report.author_key_digest if author_key else bytes(48)
    for which in ("current", "committed"):
        parts = [getattr(report, f"{which}_{part}") for part in ("major", "minor", "build")]
        expected[f"{which}_version"] = bytes(parts)
    expected["cpuid"] = bytes((report.cpuid_family, report.cpuid_model, report.cpuid_stepping))
    assert attributes == expected
