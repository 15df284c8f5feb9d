"""SEV-SNP on the real configfs-tsm with a simulated provider."""

import errno

import pytest

from attestkit.attester import Attester
from attestkit.backends.base import RegisterExtender, SnpReporter
from attestkit.backends.configfs_tsm import ConfigfsSnp, ConfigfsTsm
from attestkit.errors import BackendError, QuoteUnavailableError, UnsupportedError, UsageError
from attestkit.snp_report import SnpReport
from tests.raising import raises
from tests.rigs.kernel.guest.machine import REPORTS, SimulatedSnp, errno_of, list_entries

REPORT_DATA = bytes(range(64))
GUID = "c476f1eb-0123-45a5-9641-b4e7dde5bfe3"


def test_snp_entry_has_its_files(snp: SimulatedSnp) -> None:
    """It has more files than with TDX, and without an SVSM no service files."""
    snp.boot()
    entry = REPORTS / "files"
    entry.mkdir()
    names = sorted(file.name for file in entry.iterdir())
    entry.rmdir()
    assert names == [
        *("auxblob", "generation", "inblob", "outblob", "privlevel", "privlevel_floor"),
        "provider",
    ]


def test_snp_report_and_certificates_are_of_one_request(snp: SimulatedSnp) -> None:
    """The report has 1184 bytes, over the report data."""
    snp.boot()
    backend = ConfigfsTsm()
    assert isinstance(backend, ConfigfsSnp)
    assert isinstance(backend, SnpReporter)
    assert not isinstance(backend, RegisterExtender)
    report, certificates = backend.get_snp_report(REPORT_DATA)
    parsed = SnpReport.parse(report)
    assert (parsed.report_data, parsed.vmpl) == (REPORT_DATA, 0)
    assert certificates == snp.certificates
    assert snp.get("report_calls") == 1


def test_snp_without_certificates_has_empty_table(snp: SimulatedSnp) -> None:
    """It is not an error."""
    snp.boot(certificates=False)
    backend = ConfigfsSnp()
    assert backend.get_snp_report(REPORT_DATA).certificates == b""


def test_snp_evidence_has_report_and_certificates(snp: SimulatedSnp) -> None:
    """Events are unsupported."""
    snp.boot()
    with Attester(ConfigfsTsm()) as tee:
        evidence = tee.attest(report_data=REPORT_DATA)
        with pytest.raises(UnsupportedError):
            tee.emit_event("name", b"payload")
    assert evidence.report_data == REPORT_DATA
    assert evidence.quote is None


@pytest.mark.parametrize("level", [1, 2, 3])
def test_privlevel_is_in_the_report(snp: SimulatedSnp, level: int) -> None:
    """The kernel parses the text as a number."""
    snp.boot()
    report, _ = ConfigfsSnp(privlevel=level).get_snp_report(REPORT_DATA)
    assert SnpReport.parse(report).vmpl == level


def test_privlevel_below_floor_is_rejected_on_kernel(snp: SimulatedSnp) -> None:
    """It is rejected before the request; a missing level is rejected by the platform."""
    snp.boot(vmpl=2)
    with raises(UsageError, "out_of_range"):
        ConfigfsSnp(privlevel=1).get_snp_report(REPORT_DATA)
    assert snp.get("report_calls") == 0
    with raises(BackendError, "io_error"):
        ConfigfsSnp().get_snp_report(REPORT_DATA)
    report, _ = ConfigfsSnp(privlevel=2).get_snp_report(REPORT_DATA)
    assert SnpReport.parse(report).vmpl == 2
    entry = REPORTS / "floor"
    entry.mkdir()
    assert errno_of(lambda: (entry / "privlevel").write_bytes(b"1")) == errno.EINVAL
    entry.rmdir()


def test_svsm_service_options_and_manifest(snp: SimulatedSnp) -> None:
    """The kernel accepts provider, service and version, and returns the manifest."""
    snp.boot(manifest=b"the services")
    backend = ConfigfsSnp(service_provider="svsm", service_guid=GUID, service_manifest_version=1)
    answer = backend.get_service_report(REPORT_DATA)
    assert answer.manifest == b"the services"
    assert SnpReport.parse(answer.report).report_data == REPORT_DATA


def test_svsm_options_without_svsm_are_unsupported(snp: SimulatedSnp) -> None:
    """They are rejected before any write."""
    snp.boot()
    with raises(UnsupportedError, "feature"):
        ConfigfsSnp(service_provider="svsm").get_snp_report(REPORT_DATA)
    assert snp.get("report_calls") == 0


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EIO, "request_failed"), (errno.ETIMEDOUT, "timed_out")]
)
def test_snp_failure_prevents_further_requests(snp: SimulatedSnp, number: int, reason: str) -> None:
    """The driver has wiped its key: the backend makes no request, and a new one gets "key_lost"."""
    snp.boot()
    backend = ConfigfsSnp()
    snp.set(report_err=-number)
    for _ in range(3):
        with raises(QuoteUnavailableError, reason):
            backend.get_snp_report(REPORT_DATA)
    assert snp.get("report_calls") == 1
    with raises(QuoteUnavailableError, "key_lost"):
        ConfigfsSnp().get_snp_report(REPORT_DATA)
    assert list_entries() == []
