"""The backend of Azure's confidential VMs, on swtpm and a server that answers like IMDS."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from attestkit._formats.compact_jws import to_base64url
from attestkit.attestation import Attestation
from attestkit.attestation.azure import HclReport
from attestkit.attestation.wire.evidence_parts import AzureSnp, AzureTdx, Evidence, Stack
from attestkit.attester import Attester
from attestkit.backends.azure import AzureBackend
from attestkit.backends.azure import backend as backend_module
from attestkit.backends.azure.backend import (
    AK_CERTIFICATE,
    AK_HANDLE,
    HCL_REPORT,
    REFRESH_SECONDS,
    USER_DATA,
)
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.frames import TpmResponse
from attestkit.backends.tpm.transports import StreamTransport, TpmTransport
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UnsupportedError,
    UsageError,
)
from attestkit.report_data import ReportData
from attestkit.testing.contract import BackendContract
from attestkit.tpm import TpmsAttest
from attestkit.verifier.claims import Authenticated
from tests.attestation.hcl import MODULUS, hcl_bytes
from tests.backends.azure.confidential_vm import ConfidentialVm
from tests.backends.azure.imds_server import json_response, status_response
from tests.backends.tpm.templates import EVERY_PCR
from tests.collateral.http_server import CreateServer
from tests.machines.software_tpm import needs_swtpm
from tests.raising import raises
from tests.verifier.platforms import azure

pytestmark = needs_swtpm

REPORT_DATA = bytes(range(100, 164))

CreateVm = Callable[..., ConfidentialVm]
both = pytest.mark.parametrize("kind", ["snp", "tdx"])


@pytest.fixture
def create_vm(software_tpm: TpmClient, create_server: CreateServer) -> CreateVm:
    """Return a function that prepares swtpm as a confidential VM."""
    return lambda kind="snp": ConfidentialVm(software_tpm, create_server, kind)


class TestContract(BackendContract):
    """The contract of backends holds; `probe` has tests of its own, because swtpm has no device."""

    @pytest.fixture(autouse=True)
    def _vm(
        self,
        create_vm: CreateVm,
        software_tpm: TpmClient,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))
        self.vm, self.tpm = create_vm(), software_tpm

    def make_backend(self) -> AzureBackend:
        """Return the backend of the VM."""
        return self.vm.backend()

    def probe_backend(self, backend: object) -> None:
        """Skip."""


Probe = Callable[[Callable[..., TpmClient]], None]


@pytest.fixture
def probe_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Probe:
    """Return the probe of detection on a VM of Azure whose TPM a function opens."""
    paths = KernelPaths.below(tmp_path)
    paths.dmi.mkdir(parents=True)
    (paths.dmi / "sys_vendor").write_text("Microsoft Corporation\n")
    (paths.dmi / "chassis_asset_tag").write_text("7783-7084-3265-9085-8269-3286-77\n")

    def probe(open_tpm: Callable[..., TpmClient]) -> None:
        monkeypatch.setattr(backend_module, "open_tpm", open_tpm)
        AzureBackend.probe_for_detection(paths)

    return probe


def test_azure_probe_reads_the_report_and_sends_nothing(
    create_vm: CreateVm, probe_with: Probe
) -> None:
    """A report of SEV-SNP or TDX in the TPM suffices; the metadata service gets no request."""
    vm = create_vm("tdx")
    probe_with(lambda *_: vm.tpm)
    assert not vm.imds.requests
    with raises(UsageError, "closed"):
        vm.tpm.read_nv_index(HCL_REPORT)


def test_azure_probe_without_report_is_unavailable(
    software_tpm: TpmClient, probe_with: Probe
) -> None:
    """The TPM of a VM that is not confidential has no such index."""
    with raises(BackendUnavailableError, "missing", part="ConfidentialVM"):
        probe_with(lambda *_: software_tpm)


@pytest.mark.parametrize("tag", ["", "1234"])
def test_azure_detection_does_not_open_the_tpm_of_another_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tag: str
) -> None:
    """Hyper-V elsewhere has the vendor of Azure, too, but not its asset tag."""
    opened: list[object] = []
    paths = KernelPaths.below(tmp_path)
    paths.dmi.mkdir(parents=True)
    (paths.dmi / "sys_vendor").write_text("Microsoft Corporation\n")
    (paths.dmi / "chassis_asset_tag").write_text(tag)
    monkeypatch.setattr(backend_module, "open_tpm", opened.append)
    with raises(BackendUnavailableError, "wrong_platform", part="does not name a VM of Azure"):
        AzureBackend.probe_for_detection(paths)
    assert opened == []


def test_azure_probe_of_missing_or_failing_tpm_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, probe_with: Probe
) -> None:
    """Detection goes on if there is no TPM, or if another process has its raw node."""
    monkeypatch.delenv("TPM_DEVICE", raising=False)
    with raises(BackendUnavailableError, "missing"):
        AzureBackend.probe(KernelPaths.below(tmp_path))

    def fail(*_: object) -> TpmClient:
        raise BackendBusyError("/dev/tpm0: busy", reason="device")

    with raises(BackendUnavailableError, "unreadable"):
        probe_with(fail)


def verify(platform: AzureSnp | AzureTdx, report_data: bytes = REPORT_DATA) -> Authenticated:
    """Verify evidence; return its content."""
    return azure.authenticate(platform, report_data)


@both
def test_azure_backend_evidence_is_accepted_by_the_verifier(create_vm: CreateVm, kind: str) -> None:
    """Evidence has the report data in the quote and in the paravisor's user data."""
    vm = create_vm(kind)
    found = vm.backend().collect_evidence(REPORT_DATA)
    assert isinstance(found, AzureSnp if kind == "snp" else AzureTdx)
    assert TpmsAttest.parse(found.vtpm_quote.message).extra_data == REPORT_DATA
    assert [pcr.number for pcr in found.vtpm_quote.pcr_values] == list(EVERY_PCR)
    outcomes = {step.check: step.outcome for step in verify(found).steps}
    assert outcomes["user_data"] == outcomes["hardware_to_ak"] == "passed"
    assert vm.waits == [REFRESH_SECONDS]
    assert [request.line.split()[0] for request in vm.imds.requests] == [
        "GET" if kind == "snp" else "POST"
    ]
    evidence = Attestation(Evidence(found, Stack(REPORT_DATA, (), "")))
    assert Attestation.from_bytes(evidence.to_bytes("coco")).report_data == REPORT_DATA
    assert b'"version":2' in evidence.to_bytes("coco")


def test_azure_attester_binds_a_nonce(create_vm: CreateVm) -> None:
    """`attest` binds the nonce by the quote; the hardware's report has the key anyway."""
    vm = create_vm()
    with Attester(vm.backend()) as tee:
        found = tee.attest(nonce=b"12345678")
        with pytest.raises(UnsupportedError):
            tee.get_quote(REPORT_DATA)
    assert found.report_data == ReportData.for_nonce(b"12345678")
    assert found.platform == "hcl-snp"
    platform = found.evidence.platform
    assert isinstance(platform, AzureSnp)
    verify(platform, found.report_data)


class SmallTpm(StreamTransport):
    """A TPM without SHA-512, which takes at most 50 bytes of qualifying data."""

    def __init__(self, inner: TpmTransport) -> None:
        self.path, self.lock, self.inner = inner.path, inner.lock, inner

    def exchange(self, command: bytes, seconds: float) -> bytes:
        """Refuse a Quote over more bytes, as such a TPM does."""
        if command[6:10] == b"\0\0\1\x58" and int.from_bytes(command[27:29], "big") > 50:
            return TpmResponse(0x1D5).encode()
        return self.inner.exchange(command, seconds)


@both
def test_azure_backend_reports_a_tpm_that_takes_less_data(create_vm: CreateVm, kind: str) -> None:
    """Report data of 32 bytes are quoted as they are, and verify; longer ones have a remedy."""
    vm = create_vm(kind)
    client = TpmClient(SmallTpm(vm.tpm.transport), seconds=60, key_seconds=60)
    backend = vm.backend(client=client)
    with raises(UnsupportedError, "feature", part="at most 32 bytes"):
        backend.collect_evidence(REPORT_DATA)
    short = REPORT_DATA[:32] + bytes(32)
    found = backend.collect_evidence(short)
    assert TpmsAttest.parse(found.vtpm_quote.message).extra_data == short[:32]
    assert verify(found, short).report_data == short


def test_azure_backend_without_user_data_does_not_wait(create_vm: CreateVm) -> None:
    """Without user data, the TPM's NV memory is not written, and the report may be old."""
    vm = create_vm()
    found = vm.backend(user_data=False).collect_evidence(REPORT_DATA)
    assert {step.check: step.outcome for step in verify(found).steps}["user_data"] == "skipped"
    assert vm.waits == []
    assert vm.tpm.find_nv(USER_DATA) is None


def test_azure_backend_defines_the_user_data_again_if_their_size_differs(
    create_vm: CreateVm,
) -> None:
    """An index of another size, as another program left it, is replaced."""
    vm = create_vm()
    vm.tpm.nv_define(USER_DATA, 32)
    verify(vm.backend().collect_evidence(REPORT_DATA))
    verify(vm.backend().collect_evidence(bytes(range(64))), bytes(range(64)))
    found = vm.tpm.find_nv(USER_DATA)
    assert found is not None
    assert found.size == 64


def test_azure_backend_repeats_until_the_report_has_the_user_data(create_vm: CreateVm) -> None:
    """A report with user data of another process is read again, at most three times."""
    vm = create_vm()

    def late() -> None:
        if len(vm.waits) == 4:
            vm.refresh()

    vm.while_waiting = late
    verify(vm.backend().collect_evidence(REPORT_DATA))
    assert vm.waits == [REFRESH_SECONDS] * 4
    vm.while_waiting = lambda: None
    with raises(BackendError, "wrong_report_data"):
        vm.backend().collect_evidence(bytes(range(64)))
    assert len(vm.waits) == 8


def test_azure_backend_loses_a_race_for_the_user_data(create_vm: CreateVm) -> None:
    """Another process that writes the index meanwhile is noticed."""
    vm = create_vm()

    def overwrite() -> None:
        vm.tpm.nv_write(USER_DATA, bytes(64))
        vm.refresh()

    vm.while_waiting = overwrite
    with raises(BackendError, "wrong_report_data"):
        vm.backend().collect_evidence(REPORT_DATA)


class SharedTpm(StreamTransport):
    """A TPM whose HCL report the paravisor renews while this process reads it."""

    def __init__(self, vm: ConfidentialVm, times: int) -> None:
        inner = vm.tpm.transport
        self.path, self.lock, self.inner, self.vm = inner.path, inner.lock, inner, vm
        self.left = times

    def exchange(self, command: bytes, seconds: float) -> bytes:
        """Renew the report before its second piece is read."""
        if command[6:10] == b"\0\0\1\x4e" and command[-2:] == b"\4\0" and self.left:
            self.left -= 1
            self.vm.tpm.nv_write(USER_DATA, bytes([self.left + 1]) * 64)
            self.vm.refresh()
        return self.inner.exchange(command, seconds)


@both
def test_azure_backend_reads_a_report_again_that_changed_meanwhile(
    create_vm: CreateVm, kind: str
) -> None:
    """The pieces of one read are of one report; a report that changes each time is an error."""
    vm = create_vm(kind)
    vm.tpm.nv_define(USER_DATA, 64)
    for times in (1, 3):
        client = TpmClient(SharedTpm(vm, times), seconds=60, key_seconds=60)
        found = vm.backend(client=client, user_data=False).collect_evidence(REPORT_DATA)
        assert HclReport.parse(found.hcl_report).content.user_data == bytes([1]) * 64
    client = TpmClient(SharedTpm(vm, 4), seconds=60, key_seconds=60)
    with raises(BackendError, "wrong_report_data"):
        vm.backend(client=client, user_data=False).collect_evidence(REPORT_DATA)


def test_azure_backend_accepts_an_early_paravisor(create_vm: CreateVm) -> None:
    """A paravisor without user data makes evidence in which only the quote is fresh."""
    vm = create_vm()
    vm.with_user_data = False
    found = vm.backend().collect_evidence(REPORT_DATA)
    assert HclReport.parse(found.hcl_report).content.user_data is None
    assert len(vm.waits) == 1
    verify(found)


def test_azure_backend_adds_the_certificate_without_padding(create_vm: CreateVm) -> None:
    """The certificate ends where its DER does, also if it ends with zeros."""
    vm = create_vm()
    certificate = b"\x30\x04\x02\x02\x01\x00"
    vm.write_certificate(certificate)
    backend = vm.backend(user_data=False)
    assert backend.collect_evidence(REPORT_DATA).vtpm_quote.ak_certificates == (certificate,)
    vm.tpm.nv_write(AK_CERTIFICATE, bytes(6))
    assert backend.collect_evidence(REPORT_DATA).vtpm_quote.ak_certificates == ()


def test_azure_backend_extends_pcr_8_by_init_data(create_vm: CreateVm) -> None:
    """Init-data are the only extension of PCR 8 of the SHA-256 bank."""
    vm = create_vm()
    backend, digest = vm.backend(user_data=False), bytes(range(32))
    backend.extend_init_data(digest)
    facts = verify(backend.collect_evidence(REPORT_DATA)).vtpm
    assert facts is not None
    assert facts.pcr("sha256", 8) == sha256(bytes(32) + digest).digest()
    with raises(UsageError, "wrong_size"):
        backend.extend_init_data(b"")


def test_azure_backend_without_report_is_unavailable(create_vm: CreateVm) -> None:
    """The error differs for no index, an index never written, other content, and a VBS report."""
    vm = create_vm()
    backend = vm.backend(user_data=False)
    vbs = bytearray(hcl_bytes(size=2048))
    vbs[1224] = 1
    for content, reason in ((bytes(2048), "missing"), (bytes(vbs), "wrong_platform")):
        vm.write_report(content)
        with raises(BackendUnavailableError, reason):
            backend.collect_evidence(REPORT_DATA)
    vm.tpm.nv_undefine(HCL_REPORT)
    with raises(BackendUnavailableError, "missing"):
        backend.collect_evidence(REPORT_DATA)
    vm.tpm.nv_define(HCL_REPORT, 2048)
    with raises(BackendUnavailableError, "missing"):
        backend.collect_evidence(REPORT_DATA)
    assert not vm.imds.requests


def test_azure_backend_with_another_key_is_refused(create_vm: CreateVm) -> None:
    """The key at the handle must be that of the report."""
    vm = create_vm()
    vm.modulus = MODULUS
    vm.refresh()
    with raises(BackendError, "platform_changed"):
        vm.backend(user_data=False).collect_evidence(REPORT_DATA)
    vm.tpm.evict_control(AK_HANDLE, AK_HANDLE)
    with raises(BackendUnavailableError, "missing"):
        vm.backend(user_data=False).collect_evidence(REPORT_DATA)


def test_azure_backend_reports_errors_of_the_metadata_service(create_vm: CreateVm) -> None:
    """A service that fails, and a quote that is malformed or of another report, are errors."""
    vm = create_vm("tdx")
    backend = vm.backend(user_data=False)
    vm.answers["/acc/tdquote"] = status_response(500)
    with raises(QuoteUnavailableError, "quoting_service"):
        backend.collect_evidence(REPORT_DATA)
    assert len(vm.waits) == 3
    vm.answers["/acc/tdquote"] = json_response(quote="AAAA")
    with raises(BackendError, "malformed_response"):
        backend.collect_evidence(REPORT_DATA)
    other = azure.tdx().td_quote
    vm.answers["/acc/tdquote"] = json_response(quote=to_base64url(other))
    with raises(BackendError, "wrong_report_data"):
        backend.collect_evidence(REPORT_DATA)


def test_azure_backend_methods_of_other_platforms_are_unsupported(create_vm: CreateVm) -> None:
    """There is no quote over report data, no key to bind, and no log of RTMRs."""
    backend = create_vm().backend()
    with raises(UnsupportedError, "no_quote"):
        backend.get_quote(REPORT_DATA)
    with raises(UnsupportedError, "feature"):
        backend.read_attestation_key()
    assert backend.read_event_log() == b""
    with raises(UsageError, "wrong_size"):
        backend.collect_evidence(b"")
    assert repr(backend) == "<AzureBackend on swtpm>"
    backend.close()
    backend.close()
