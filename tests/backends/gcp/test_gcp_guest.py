"""The backend of Google's Confidential VMs, on swtpm and simulated hardware."""

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from attestkit import backends
from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, GcpSnp, GcpTdx, Stack
from attestkit.attester import Attester
from attestkit.backends.base import EvidenceCollector, RegisterExtender, SnpReporter
from attestkit.backends.gcp import GcpBackend, GcpSnpGuest, GcpTdGuest
from attestkit.backends.gcp.event_logs import event_digest, replay_events
from attestkit.backends.linux import host_inspection
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.simulator import Simulator
from attestkit.backends.tpm.client import TpmClient
from attestkit.errors import (
    AttestKitError,
    BackendError,
    BackendUnavailableError,
    FormatError,
    JournalError,
    ReplayError,
    UsageError,
)
from attestkit.report_data import ReportData
from attestkit.tpm import PcrSelection, TpmtPublic
from attestkit.verifier import Verifier
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.evidence.checks import ExpectedReportData, join_hardware
from attestkit.verifier.platforms.gcp import GcpAuthenticator
from attestkit.verifier.platforms.vtpm.ak_chain import AkChains
from attestkit.verifier.platforms.vtpm.pcr_logs import with_replayed_logs
from tests.backends.gcp.machine import ECC, INDICES, RSA, Machine, certify, make_machine
from tests.vectors import needs_shared

NONCE = b"a nonce of a challenger"
NOW = datetime(2026, 12, 1, tzinfo=timezone.utc)
PCR_14 = (PcrSelection("sha256", (14,)),)

pytestmark = needs_shared


@pytest.fixture
def machine(software_tpm: TpmClient, tmp_path: Path) -> Machine:
    """Return a TDX machine whose boot events are in RTMR 3 and PCR 14."""
    found = make_machine(software_tpm, tmp_path / "root", Simulator())
    found.extend_by_events()
    return found


def verifier(machine: Machine) -> Verifier:
    """Return a verifier that trusts the machine."""
    return Verifier(
        trust_anchor=machine.hardware.trust_anchor,
        collateral=machine.hardware.collateral(),
        ak_certificates=[machine.ca.intermediate_der],
    )


def reason_of(call: Callable[[], Any], kind: type[AttestKitError]) -> str:
    """Return the reason of the error."""
    with pytest.raises(kind) as caught:
        call()
    return caught.value.reason


def attester(machine: Machine) -> Attester[GcpBackend]:
    """Return an attester on the machine."""
    return Attester(machine.open(), host=machine.hardware)


# -- TDX -------------------------------------------------------------------------------------------


def test_evidence_with_a_nonce_verifies_with_both_joins(machine: Machine) -> None:
    """The report data are over nonce and key, the TPM's quote over the TDX quote."""
    evidence = attester(machine).attest(nonce=NONCE)
    platform = evidence.evidence.platform
    assert isinstance(platform, GcpTdx)
    assert [value.number for value in platform.tpm_quote.pcr_values] == [0, 2, 14]
    found = verifier(machine).examine(evidence.to_bytes())
    authenticated = found.authenticate()
    found.replay()
    found.image_hash()
    app = found.app_info()
    assert app is not None
    assert app.app_id
    assert authenticated.vtpm is not None
    assert dict(authenticated.vtpm.details)["gce_instance"] == "simulated-vm"
    expected = ExpectedReportData.of(NONCE, ...)
    join = join_hardware(expected, authenticated.report_data, authenticated.vtpm)
    assert join.vtpm is not None
    assert join.vtpm.joins == ("hardware_to_ak", "ak_to_hardware")
    assert join.expected.value == authenticated.report_data


def test_raw_report_data_and_a_bare_quote_are_available(machine: Machine) -> None:
    """Raw report data are used as given."""
    raw = ReportData.for_nonce(NONCE)
    opened = attester(machine)
    assert opened.attest(report_data=raw).report_data == raw
    assert opened.get_quote(b"x").report_data == ReportData.pad(b"x")
    assert opened.has_quotes


def test_an_event_extends_both_registers(machine: Machine) -> None:
    """A runtime event is in RTMR 3, in PCR 14 and in the evidence."""
    opened = attester(machine)
    (before,) = machine.client.pcr_read(PCR_14).values()
    event = opened.emit_event("app-event", b"payload")
    assert machine.client.pcr_read(PCR_14) == {("sha256", 14): sha256(before + event_digest(event))}
    evidence = opened.attest(nonce=NONCE)
    assert evidence.runtime_events[-1].name == "app-event"
    found = verifier(machine).examine(evidence)
    found.authenticate()
    found.replay()


def test_pcr_14_that_is_one_event_behind_is_extended(
    software_tpm: TpmClient, tmp_path: Path
) -> None:
    """A crash between log and PCR is repaired at the next use; two missing events are refused."""
    found = make_machine(software_tpm, tmp_path / "root", Simulator())
    events = found.hardware.open_journal().events()
    found.extend_by_events(len(events) - 2)
    call = attester(found).attest
    assert reason_of(lambda: call(nonce=NONCE), JournalError) == "mismatch"
    found.client.pcr_extend(14, {"sha256": event_digest(events[-2])})
    evidence = attester(found).attest(nonce=NONCE)
    verifier(found).examine(evidence).authenticate()
    found.client.pcr_extend(14, {"sha256": bytes(32)})
    call = attester(found).attest
    assert reason_of(lambda: call(nonce=NONCE), JournalError) == "mismatch"
    assert reason_of(lambda: attester(found).emit_event("x", b""), JournalError) == "mismatch"


def test_the_backend_has_the_protocols_of_its_hardware(machine: Machine) -> None:
    """A TD has registers; the classes can be named, and another kind is refused."""
    opened = machine.open()
    assert isinstance(opened, GcpTdGuest)
    assert isinstance(opened, EvidenceCollector)
    assert isinstance(opened, RegisterExtender)
    assert opened.read_rtmr(3) == machine.hardware.read_rtmr(3)
    assert opened.read_event_log() == machine.hardware.read_event_log()
    options: dict[str, Any] = {"hardware": machine.hardware, "client": machine.client}
    assert reason_of(lambda: GcpSnpGuest(**options), UsageError) == "not_applicable"
    options["hardware"] = object()
    assert reason_of(lambda: GcpBackend(**options), UsageError) == "wrong_type"


def test_hardware_that_returns_other_report_data_is_refused(machine: Machine) -> None:
    """Evidence over report data other than requested is not signed by the TPM."""
    hardware = machine.hardware
    quote = hardware.get_quote

    class Other(Simulator):
        """A TD whose quotes are always over zeros."""

        def get_quote(self, report_data: bytes) -> bytes:
            """Return a quote over zeros."""
            del report_data
            return quote(bytes(64))

    opened = GcpBackend(paths=machine.paths, hardware=Other(), client=machine.client)
    assert isinstance(opened, GcpTdGuest)
    call = opened.collect_evidence
    assert reason_of(lambda: call(b"x" * 64), BackendError) == "wrong_report_data"
    assert reason_of(lambda: call(b"x"), UsageError) == "wrong_size"


# -- the key ---------------------------------------------------------------------------------------


def test_the_rsa_key_is_used_if_there_is_no_other(software_tpm: TpmClient, tmp_path: Path) -> None:
    """Google's templates of both kinds work, and ECC comes first."""
    found = make_machine(software_tpm, tmp_path / "root", Simulator(), kind="rsa")
    found.extend_by_events()
    opened = attester(found)
    verifier(found).examine(opened.attest(nonce=NONCE)).authenticate()
    ecc = certify(software_tpm, "ecc", found.ca.issue_ak_certificate)
    platform = attester(found).attest(nonce=NONCE).evidence.platform
    assert isinstance(platform, GcpTdx)
    assert platform.tpm_quote.ak_cert == ecc  # without the padding of its index


def test_a_tpm_without_template_is_not_googles(software_tpm: TpmClient, tmp_path: Path) -> None:
    """The absent template and the absent certificate are different errors."""
    paths = KernelPaths.below(tmp_path)
    opened = GcpBackend(paths=paths, hardware=Simulator(), client=software_tpm)
    call = opened.read_attestation_key
    assert reason_of(call, BackendUnavailableError) == "wrong_platform"
    template_index, certificate_index = INDICES["ecc"]
    software_tpm.nv_define(template_index, len(ECC))
    assert reason_of(call, BackendUnavailableError) == "wrong_platform"  # never written
    software_tpm.nv_write(template_index, ECC)
    assert reason_of(call, BackendUnavailableError) == "missing"
    software_tpm.nv_define(certificate_index, 100)
    software_tpm.nv_write(certificate_index, b"\x30\x03\2\1\5" + bytes(95))
    assert reason_of(call, BackendError) == "malformed_response"


def test_a_certificate_of_another_key_is_refused(software_tpm: TpmClient, tmp_path: Path) -> None:
    """Verifiers would refuse the quote, so the backend says why."""
    found = make_machine(software_tpm, tmp_path / "root", Simulator(), kind="rsa")
    other = found.ca.issue_ak_certificate(found.open().read_attestation_key())
    template_index, certificate_index = INDICES["ecc"]
    for index, content in ((template_index, ECC), (certificate_index, other)):
        software_tpm.nv_define(index, len(content))
        software_tpm.nv_write(index, content)
    opened = found.open()
    assert isinstance(opened, GcpTdGuest)
    call = opened.collect_evidence
    assert reason_of(lambda: call(bytes(64)), BackendError) == "malformed_response"


# -- the log ---------------------------------------------------------------------------------------


def test_a_missing_or_malformed_log_is_an_error(machine: Machine) -> None:
    """Without the firmware's log verifiers refuse the PCRs."""
    opened, log = machine.open(), machine.paths.tpm_boot_log
    assert isinstance(opened, GcpTdGuest)
    content = log.read_bytes()

    def collect() -> object:
        assert isinstance(opened, GcpTdGuest)
        return opened.collect_evidence(bytes(64))

    log.write_bytes(content[:100])
    assert reason_of(collect, BackendError) == "malformed_response"
    log.write_bytes(bytes((4 << 20) + 1))
    assert reason_of(collect, BackendError) == "too_large"
    log.unlink()
    assert reason_of(collect, BackendUnavailableError) == "missing"
    log.write_bytes(content)
    log.chmod(0)
    if os.geteuid():
        assert reason_of(collect, BackendUnavailableError) == "permission_denied"
    log.chmod(0o600)
    assert collect()


# -- SEV-SNP ---------------------------------------------------------------------------------------


def test_a_report_is_quoted_with_all_pcrs(machine: Machine) -> None:
    """The TPM's quote is over the report's SHA-256, and the log explains the boot."""
    hardware = Simulator(platform="snp")
    opened = GcpBackend(paths=machine.paths, hardware=hardware, client=machine.client)
    assert isinstance(opened, GcpSnpGuest)
    assert not isinstance(opened, RegisterExtender)
    assert not isinstance(opened, SnpReporter)
    data = ReportData.for_nonce_and_ak(NONCE, opened.read_attestation_key())
    platform = opened.collect_evidence(data)
    assert isinstance(platform, GcpSnp)
    quote = platform.vtpm_quote
    assert [value.number for value in quote.pcr_values] == list(range(24))
    assert quote.boot_log == machine.paths.tpm_boot_log.read_bytes()
    assert TpmtPublic.parse(quote.ak_public).spki == opened.read_attestation_key()
    chains = AkChains(machine.hardware.trust_anchor, certificates=[machine.ca.intermediate_der])
    signed = Authenticated(data)
    evidence = Attestation(Evidence(platform, Stack(data, (), "")))
    found = GcpAuthenticator(chains).authenticate(evidence, signed, NOW).vtpm
    assert found is not None
    assert (found.key_trust, found.joins, len(found.pcrs)) == (
        *("certificate", ("ak_to_hardware",)),
        24,
    )
    # PCR 14 has the events of the TD of this fixture, which no log of an SNP guest explains.
    assert (
        reason_of(lambda: with_replayed_logs(found, quote.boot_log, b""), ReplayError)
        == "pcr_mismatch"
    )
    without = platform._replace(vtpm_quote=quote._replace(ak_certificates=()))
    evidence = Attestation(Evidence(without, Stack(data, (), "")))
    assert (
        reason_of(lambda: GcpAuthenticator(chains).authenticate(evidence, signed, NOW), FormatError)
        == "missing"
    )


def test_an_snp_guest_attests(software_tpm: TpmClient, tmp_path: Path) -> None:
    """Evidence of an SNP guest, with PCRs that no log explains, has these steps."""
    found = make_machine(software_tpm, tmp_path / "root", Simulator())
    software_tpm.pcr_extend(23, {"sha256": bytes(32)})
    hardware = Simulator(platform="snp")
    opened = GcpBackend(paths=found.paths, hardware=hardware, client=software_tpm)
    evidence = Attester(opened, host=hardware).attest(nonce=NONCE)
    assert evidence.platform == "gcp-snp"
    chains = AkChains(found.hardware.trust_anchor, certificates=[found.ca.intermediate_der])
    signed = Authenticated(evidence.report_data)
    vtpm = GcpAuthenticator(chains).authenticate(evidence, signed, NOW)
    assert [(step.check, step.outcome) for step in vtpm.steps] == [
        ("tpm_quote", "passed"),
        ("tpm_clock", "passed"),
        ("attestation_key", "passed"),
        ("ak_certificate", "passed"),
        ("ak_revocation", "skipped"),
        ("instance", "passed"),
        ("ak_to_hardware", "passed"),
    ]
    platform = evidence.evidence.platform
    assert isinstance(platform, GcpSnp)
    assert vtpm.vtpm is not None
    _, steps = with_replayed_logs(vtpm.vtpm, platform.vtpm_quote.boot_log, b"")
    assert [step.outcome for step in steps] == ["passed", "skipped"]
    assert "PCRs 23" in steps[-1].text
    join = join_hardware(ExpectedReportData.of(NONCE, ...), evidence.report_data, vtpm.vtpm)
    assert [step.outcome for step in join.steps] == ["passed"]


# -- probe -----------------------------------------------------------------------------------------


def test_probe_needs_a_tpm(tmp_path: Path) -> None:
    """A machine without a TPM node is quickly told apart."""
    paths = KernelPaths.below(tmp_path)
    assert reason_of(lambda: GcpBackend.probe(paths), BackendUnavailableError) == "missing"


def test_detection_needs_a_machine_of_google(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The TPM of another machine is not opened by detection."""
    paths = KernelPaths.below(tmp_path)
    monkeypatch.setattr("attestkit.backends.gcp.backend.find_kernel_paths", lambda: paths)
    assert reason_of(GcpBackend.probe_for_detection, BackendUnavailableError) == "wrong_platform"
    paths.dmi.mkdir(parents=True)
    (paths.dmi / "product_name").write_text("Google Compute Engine\n")
    assert reason_of(GcpBackend.probe_for_detection, BackendUnavailableError) == "missing"


@pytest.mark.parametrize("kind", ["ecc", "rsa"])
def test_template_alone_is_a_sign_of_hardware(
    software_tpm: TpmClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Without log, configfs and certificate, the template in the TPM still is a sign of Google."""
    paths = KernelPaths.below(tmp_path)
    paths.dmi.mkdir(parents=True)
    (paths.dmi / "product_name").write_text("Google Compute Engine\n")
    cloud = host_inspection.Platform("Google Cloud", "DMI", supported=True, advice="")
    monkeypatch.setattr(host_inspection, "detect_platforms", lambda *_: (cloud,))
    monkeypatch.setattr("attestkit.backends.gcp.backend.find_kernel_paths", lambda: paths)
    monkeypatch.setattr("attestkit.backends.gcp.backend.open_tpm", lambda *_: software_tpm)
    monkeypatch.setattr(software_tpm, "close", lambda: None)
    assert not backends.check_hardware_signs()[-1].positive
    with pytest.raises(BackendUnavailableError, match="not a vTPM of Google"):
        GcpBackend.probe_tpm()
    index, template = INDICES[kind][0], ECC if kind == "ecc" else RSA
    software_tpm.nv_define(index, len(template))
    software_tpm.nv_write(index, template)
    sign = backends.check_hardware_signs()[-1]
    assert (sign.positive, sign.what) == (True, "key of Google")
    with pytest.raises(BackendUnavailableError):
        GcpBackend.probe()


def test_replay_starts_where_shim_ended() -> None:
    """Without events the value is the start."""
    assert replay_events(b"\1" * 32, []) == b"\1" * 32
    with suppress(ValueError):
        replay_events(b"", [])
