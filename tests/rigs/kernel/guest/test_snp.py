"""SEV-SNP through the real configfs-tsm; the provider under it is made up."""

import errno

import pytest

from attestkit.attester import Attester
from attestkit.backends.base import RegisterExtender, SnpReporter
from attestkit.backends.configfs_tsm import ConfigfsSnp, ConfigfsTsm
from attestkit.errors import BackendError, QuoteUnavailableError, UnsupportedError, UsageError
from attestkit.snp_report import SnpReport
from tests.rigs.kernel.guest.machine import REPORTS, MadeUpSnp, entries, errno_of

ASKED = bytes(range(64))
GUID = "c476f1eb-0123-45a5-9641-b4e7dde5bfe3"


def test_an_entry_has_the_files_of_snp(snp: MadeUpSnp) -> None:
    """More than TDX has, and without an SVSM none of its services."""
    snp.boot()
    entry = REPORTS / "files"
    entry.mkdir()
    names = sorted(file.name for file in entry.iterdir())
    entry.rmdir()
    assert names == [
        *("auxblob", "generation", "inblob", "outblob", "privlevel", "privlevel_floor"),
        "provider",
    ]


def test_a_report_and_its_certificates(snp: MadeUpSnp) -> None:
    """1184 bytes over what was asked, with the host's table, of one request."""
    snp.boot()
    backend = ConfigfsTsm()
    assert isinstance(backend, ConfigfsSnp)
    assert isinstance(backend, SnpReporter)
    assert not isinstance(backend, RegisterExtender)
    report, certificates = backend.get_snp_report(ASKED)
    parsed = SnpReport.parse(report)
    assert (parsed.report_data, parsed.vmpl) == (ASKED, 0)
    assert certificates == snp.certificates
    assert snp.get("report_calls") == 1


def test_a_host_without_certificates(snp: MadeUpSnp) -> None:
    """The table is then empty, which is no error."""
    snp.boot(certificates=False)
    backend = ConfigfsSnp()
    assert backend.get_snp_report(ASKED).certificates == b""


def test_evidence_has_both(snp: MadeUpSnp) -> None:
    """An Attester makes evidence of it, and refuses events: there is no register."""
    snp.boot()
    with Attester(ConfigfsTsm()) as tee:
        evidence = tee.attest(ASKED)
        with pytest.raises(UnsupportedError):
            tee.emit_event("name", b"payload")
    assert evidence.report_data == ASKED
    assert evidence.quote is None


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_level_reaches_the_report(snp: MadeUpSnp, level: int) -> None:
    """The kernel takes our text for a number."""
    snp.boot()
    report, _ = ConfigfsSnp(privlevel=level).get_snp_report(ASKED)
    assert SnpReport.parse(report).vmpl == level


def test_a_level_below_the_floor_is_the_callers_mistake(snp: MadeUpSnp) -> None:
    """It is refused before the platform is asked; so is none at all, by the platform."""
    snp.boot(vmpl=2)
    with pytest.raises(UsageError, match="below 2"):
        ConfigfsSnp(privlevel=1).get_snp_report(ASKED)
    assert snp.get("report_calls") == 0
    with pytest.raises(BackendError, match="privlevel"):
        ConfigfsSnp().get_snp_report(ASKED)
    report, _ = ConfigfsSnp(privlevel=2).get_snp_report(ASKED)
    assert SnpReport.parse(report).vmpl == 2
    entry = REPORTS / "floor"
    entry.mkdir()
    assert errno_of(lambda: (entry / "privlevel").write_bytes(b"1")) == errno.EINVAL
    entry.rmdir()


def test_services_of_an_svsm(snp: MadeUpSnp) -> None:
    """Provider, service and version are written as the kernel wants them; its manifest is read."""
    snp.boot(manifest=b"the services")
    backend = ConfigfsSnp(service_provider="svsm", service_guid=GUID, service_manifest_version=1)
    answer = backend.get_service_report(ASKED)
    assert answer.manifest == b"the services"
    assert SnpReport.parse(answer.report).report_data == ASKED


def test_no_svsm(snp: MadeUpSnp) -> None:
    """Where there is none, asking for its services is refused before anything is written."""
    snp.boot()
    with pytest.raises(UnsupportedError, match="service_provider"):
        ConfigfsSnp(service_provider="svsm").get_snp_report(ASKED)
    assert snp.get("report_calls") == 0


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT])
def test_after_a_failure_nothing_is_asked(snp: MadeUpSnp, number: int) -> None:
    """The driver's key is gone then: one object asks no more, another is told that it is gone."""
    snp.boot()
    backend = ConfigfsSnp()
    snp.set(report_err=-number)
    for _ in range(3):
        with pytest.raises(QuoteUnavailableError, match=errno.errorcode[number]):
            backend.get_snp_report(ASKED)
    assert snp.get("report_calls") == 1
    with pytest.raises(QuoteUnavailableError, match="ENOTTY"):
        ConfigfsSnp().get_snp_report(ASKED)
    assert entries() == []
