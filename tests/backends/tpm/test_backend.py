"""The backend `tpm`: evidence of a TPM whose key the verifier has to know."""

from hashlib import sha256
from pathlib import Path

import pytest

import attestkit
from attestkit import AppraisalPolicy, backends
from attestkit.attestation import Encoding
from attestkit.attestation.wire.evidence_parts import Tpm
from attestkit.attester import Attester
from attestkit.backends.tpm import TpmBackend
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.quote_reader import LARGEST_LOG
from attestkit.errors import (
    BackendUnavailableError,
    PolicyError,
    SignatureError,
    UnsupportedError,
    UsageError,
)
from attestkit.report_data import ReportData
from attestkit.testing.contract import BackendContract
from attestkit.tpm import TpmsAttest, TpmtPublic, TpmtSignature, pcr_digest
from attestkit.tpm.handles import ENDORSEMENT
from tests.backends.tpm.templates import ECC_AK, EK, RSA_AK
from tests.machines.software_tpm import needs_swtpm
from tests.raising import raises
from tests.untyped import untyped

AK = 0x81010002
OTHER = 0x81000003
REPORT_DATA = bytes(range(64))

pytestmark = needs_swtpm


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set neither variable, and share no folder."""
    monkeypatch.delenv("AA_TPM_AK_HANDLE", raising=False)
    monkeypatch.delenv("TPM_DEVICE", raising=False)
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))


def persist(tpm: TpmClient, template: TpmtPublic, handle: int) -> bytes:
    """Make a persistent endorsement primary key; return its public area."""
    with tpm.primary_key(ENDORSEMENT, template) as key:
        tpm.evict_control(key.handle, handle)
        return key.raw


def collect(backend: TpmBackend) -> Tpm:
    """Return the evidence, whose quote is over the report data and the delivered values."""
    evidence = backend.collect_evidence(REPORT_DATA)
    part = evidence.vtpm_quote
    quote = TpmsAttest.parse(part.message)
    assert quote.extra_data == sha256(REPORT_DATA).digest()
    values = {(one.algorithm, one.number): one.value for one in part.pcr_values}
    hash_name = TpmtSignature.parse(part.signature).hash_name
    assert pcr_digest(quote.selections, values, hash_name) == quote.pcr_digest
    assert [one.number for one in part.pcr_values] == list(range(24))
    key = TpmtPublic.parse(part.ak_public)
    assert key.qualified_name(ENDORSEMENT) == quote.qualified_signer
    assert backend.read_trusted_key() == key.spki
    return evidence


class TestContract(BackendContract):
    """The contract of backends holds, except that probing needs a device."""

    @pytest.fixture(autouse=True)
    def _tpm(self, software_tpm: TpmClient) -> None:
        self.tpm = software_tpm

    def make_backend(self) -> TpmBackend:
        """Return the backend of swtpm."""
        return TpmBackend(client=self.tpm)

    def probe_backend(self, backend: object) -> None:
        """Skip: swtpm has no device."""


def test_persistent_key_is_used(software_tpm: TpmClient) -> None:
    """The key at 0x81010002, an RSA key as Confidential Containers makes it, signs the quote."""
    public = persist(software_tpm, RSA_AK, AK)
    evidence = collect(TpmBackend(client=software_tpm))
    assert evidence.vtpm_quote.ak_public == public


def test_key_is_made_if_there_is_none(software_tpm: TpmClient) -> None:
    """Without a persistent key, the same key is made each time, and no slot stays in use."""
    backend = TpmBackend(client=software_tpm)
    keys = {collect(backend).vtpm_quote.ak_public for _ in range(4)}
    assert len(keys) == 1
    found = TpmtPublic.parse(keys.pop())
    found.require_attestation_key()
    assert (found.type, found.scheme) == ("rsa", "rsassa")  # as Confidential Containers' key
    assert software_tpm.list_handles(0x80000000, 0x80FFFFFF) == ()


@pytest.mark.parametrize("given", [OTHER, "0x81000003", str(OTHER)])
def test_handle_is_chosen_by_argument(
    software_tpm: TpmClient, monkeypatch: pytest.MonkeyPatch, given: int | str
) -> None:
    """The argument wins over the variable."""
    monkeypatch.setenv("AA_TPM_AK_HANDLE", "0x81000009")
    public = persist(software_tpm, ECC_AK, OTHER)
    evidence = collect(TpmBackend(client=software_tpm, ak_handle=given))
    assert evidence.vtpm_quote.ak_public == public


def test_handle_is_chosen_by_variable(
    software_tpm: TpmClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable of Confidential Containers names the handle."""
    public = persist(software_tpm, ECC_AK, OTHER)
    monkeypatch.setenv("AA_TPM_AK_HANDLE", "0x81000003")
    assert collect(TpmBackend(client=software_tpm)).vtpm_quote.ak_public == public


def test_chosen_handle_without_key_is_an_error(software_tpm: TpmClient) -> None:
    """No other key takes the place of one that the caller chose."""
    for handle in (AK, OTHER):
        backend = TpmBackend(client=software_tpm, ak_handle=handle)
        with raises(BackendUnavailableError, "not_configured", part=f"{handle:#x}"):
            backend.collect_evidence(REPORT_DATA)


@pytest.mark.parametrize("handle", ["0x80000001", 0x82000000, "ak", -1, "", "81010002"])
def test_invalid_handle_is_usage_error(software_tpm: TpmClient, handle: int | str) -> None:
    """A handle is persistent, and a number."""
    stated = handle if isinstance(handle, str) else f"{handle:#x}"
    with raises(UsageError, "out_of_range", start="ak_handle: ", part=stated):
        TpmBackend(client=software_tpm, ak_handle=handle)


def test_key_that_is_no_attestation_key_is_refused(software_tpm: TpmClient) -> None:
    """A key that signs or decrypts other data is not used for quotes."""
    persist(software_tpm, EK, AK)
    with raises(BackendUnavailableError, "not_configured", part="has decrypt"):
        TpmBackend(client=software_tpm).collect_evidence(REPORT_DATA)


@pytest.mark.parametrize("bank", ["sha256", "sha384", "sha512"])
def test_bank_is_an_option(software_tpm: TpmClient, bank: str) -> None:
    """The quoted bank can be any but SHA-1, and its PCRs are all delivered."""
    evidence = collect(TpmBackend(client=software_tpm, bank=bank))
    assert {one.algorithm for one in evidence.vtpm_quote.pcr_values} == {bank}
    for other in ("sha1", "md5"):
        with raises(UsageError, "wrong_value"):
            TpmBackend(client=software_tpm, bank=other)


def test_logs_and_certificate_are_in_the_evidence(
    software_tpm: TpmClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Logs that are readable are sent, unless the caller does not want them; else it is logged."""
    folder = tmp_path / "sys/kernel/security"
    for name in ("tpm0/binary_bios_measurements", "ima/binary_runtime_measurements"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(name.encode())
    backend = TpmBackend(client=software_tpm, root=tmp_path, ak_certificate=b"DER")
    part = collect(backend).vtpm_quote
    assert part.boot_log == b"tpm0/binary_bios_measurements"
    assert part.ima_log == b"ima/binary_runtime_measurements"
    assert part.ak_certificates == (b"DER",)
    (folder / "ima/binary_runtime_measurements").write_bytes(bytes(LARGEST_LOG + 1))
    assert not caplog.records
    assert collect(backend).vtpm_quote.ima_log == b""  # longer than evidence may be
    assert "binary_runtime_measurements: more than 3145728 bytes" in caplog.text
    boot_log = folder / "tpm0/binary_bios_measurements"
    boot_log.unlink()
    boot_log.mkdir()
    assert collect(backend).vtpm_quote.boot_log == b""
    assert "binary_bios_measurements: cannot be read (EISDIR" in caplog.text
    boot_log.rmdir()
    caplog.clear()
    (folder / "ima/binary_runtime_measurements").unlink()
    assert collect(backend).vtpm_quote.boot_log == b""  # missing logs are not reported
    assert not caplog.records
    part = collect(TpmBackend(client=software_tpm, root=tmp_path, logs=False)).vtpm_quote
    assert (part.boot_log, part.ima_log, part.ak_certificates) == (b"", b"", ())


def test_attester_attests(software_tpm: TpmClient) -> None:
    """An Attester on the backend binds a nonce as on other platforms."""
    with Attester(TpmBackend(client=software_tpm)) as tee:
        assert not tee.has_quotes
        evidence = tee.attest(nonce=b"12345678")
        with raises(UnsupportedError, "no_quote"):
            tee.get_quote(REPORT_DATA)
    platform = evidence.evidence.platform
    assert isinstance(platform, Tpm)
    quote = TpmsAttest.parse(platform.vtpm_quote.message)
    assert quote.extra_data == sha256(ReportData.for_nonce(b"12345678")).digest()


@pytest.mark.parametrize("encoding", ["cbor", "json", "coco"])
def test_evidence_is_verified_with_its_key(software_tpm: TpmClient, encoding: Encoding) -> None:
    """A verifier that lists the key accepts the evidence for its nonce; others refuse it."""
    backend = TpmBackend(client=software_tpm)
    policy = AppraisalPolicy.default().replace(
        trusted_aks={sha256(backend.read_trusted_key()).digest()}, platforms={"tpm"}
    )
    with Attester(backend) as tee:
        raw = tee.attest(nonce=b"12345678").to_bytes(encoding)
    result = attestkit.verify(raw, nonce=b"12345678", policy=policy)
    assert result.claims.platform == "tpm"
    assert result.claims.report_data == ReportData.for_nonce(b"12345678")
    with raises(PolicyError, "report_data"):
        attestkit.verify(raw, nonce=b"87654321", policy=policy)
    unlisted = policy.replace(trusted_aks={bytes(32)})
    with raises(SignatureError, "ak_unknown"):
        attestkit.verify(raw, nonce=b"12345678", policy=unlisted)


@pytest.mark.parametrize("size", [0, 9, 32])
def test_short_report_data_are_quoted_as_by_confidential_containers(
    software_tpm: TpmClient, size: int
) -> None:
    """Report data of at most 32 bytes are the qualifying data, zero-padded to 32 bytes."""
    report_data = REPORT_DATA[1 : size + 1]
    with Attester(TpmBackend(client=software_tpm)) as tee:
        evidence = tee.attest(report_data=report_data, pad=True)
        policy = AppraisalPolicy.default().replace(
            trusted_aks={tee.backend.read_trusted_key()}, platforms={"tpm"}
        )
    platform = evidence.evidence.platform
    assert isinstance(platform, Tpm)
    quote = TpmsAttest.parse(platform.vtpm_quote.message)
    assert quote.extra_data == report_data.ljust(32, b"\0")
    for encoding in ("cbor", "coco"):
        raw = evidence.to_bytes(encoding)
        result = attestkit.verify(raw, report_data=report_data, policy=policy)
        assert result.claims.report_data == report_data.ljust(64, b"\0")


def test_key_is_stored_once(software_tpm: TpmClient) -> None:
    """The key that would be made for each request is stored at the handle, and stays the same."""
    backend = TpmBackend(client=software_tpm)
    key = backend.read_trusted_key()
    assert [backend.persist_key() for _ in range(2)] == [AK, AK]
    assert software_tpm.read_public(AK).public.spki == key
    assert backend.read_trusted_key() == key
    assert software_tpm.list_handles(0x80000000, 0x80FFFFFF) == ()
    persist(software_tpm, EK, OTHER)
    with raises(BackendUnavailableError, "not_configured", part="has decrypt"):
        TpmBackend(client=software_tpm, ak_handle=OTHER).persist_key()


def test_hardware_key_is_unsupported(software_tpm: TpmClient) -> None:
    """There is no hardware evidence that could bind the key, and no quote or log without TPM."""
    backend = TpmBackend(client=software_tpm)
    with raises(UnsupportedError, "feature"):
        backend.read_attestation_key()
    with raises(UnsupportedError, "no_quote"):
        backend.get_quote(REPORT_DATA)
    assert backend.read_event_log() == b""
    assert repr(backend) == "<TpmBackend on swtpm>"
    with raises(UsageError, "wrong_type"):
        backend.collect_evidence(untyped("text"))
    backend.close()
    with raises(UsageError, "closed"):
        backend.collect_evidence(REPORT_DATA)


def test_backend_is_only_used_by_name(tmp_path: Path) -> None:
    """Detection never selects a plain TPM; opening it by name reports the missing device."""
    assert backends.load("tpm") is TpmBackend
    assert "tpm" not in backends.AUTO_ORDER
    with raises(BackendUnavailableError, "missing"):
        attestkit.open("tpm", root=tmp_path)
    with raises(BackendUnavailableError, "missing"):
        TpmBackend.probe(backends.find_kernel_paths(tmp_path))
