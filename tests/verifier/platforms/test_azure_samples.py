"""Genuine evidence of Azure, with what an independent reader finds in it."""

import json
from datetime import datetime, timezone
from typing import Any, Final

import pytest

from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.vendor_roots import azure_authorities, azure_root
from attestkit.attestation import Attestation
from attestkit.attestation.azure import HclReport
from attestkit.attestation.coco import read_bincode_quote
from attestkit.attestation.wire.evidence_parts import (
    AzureSnp,
    AzureTdx,
    Evidence,
    Stack,
    VtpmQuote,
    td_body,
)
from attestkit.errors import AttestKitError, SignatureError, VerificationError
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.td_report import TdReport
from attestkit.tpm import TpmsAttest, TpmtSignature
from attestkit.verifier import Verifier
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.dcap.engine import Dcap
from attestkit.verifier.dcap.td_attributes import check_attributes
from attestkit.verifier.platforms.azure import AzureAuthenticator
from attestkit.verifier.platforms.vtpm.ak_chain import AkChains
from attestkit.verifier.platforms.vtpm.quote import verify_tpm_quote
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared
from tests.verifier.platforms.vtpm.tpm_samples import vtpm_json

pytestmark = needs_shared

NOW: Final = datetime(2026, 6, 1, tzinfo=timezone.utc)
EXPECTED: Final[dict[str, Any]] = vtpm_json("expected.json")
CHALLENGE: Final = b"challenge".ljust(64, b"\0")
SNP_EVIDENCE: Final = ["azure/trustee-snp/evidence-v0.json", "azure/trustee-snp/evidence-v1.json"]
TDX_EVIDENCE: Final = "azure/trustee-tdx/evidence-v1.json"


def sample(name: str) -> bytes:
    """Return a file of the samples."""
    return data(f"vtpm/{name}")


def coco_quote(name: str) -> VtpmQuote:
    """Return a quote in CoCo's JSON, which is part of evidence elsewhere."""
    fields = {
        "version": 1,
        "hcl_report": "AA",
        "td_quote": "AA",
        "tpm_quote": json.loads(sample(name)),
    }
    platform = Attestation.from_bytes(json.dumps(fields).encode()).evidence.platform
    assert isinstance(platform, AzureTdx)
    return platform.vtpm_quote


def snp_verifier() -> Verifier:
    """Return a verifier under AMD's root, with the certificate that the evidence lacks."""
    return Verifier(snp_certificates=[data("snp/go-sev-guest/ask_ark_milan.pem")])


def authenticate(attestation: Attestation) -> Authenticated:
    """Verify the signatures of SEV-SNP evidence."""
    return snp_verifier().examine(attestation, now=NOW).authenticate()


def rejection(attestation: Attestation) -> AttestKitError:
    """Return the error for rejected evidence."""
    with pytest.raises(AttestKitError) as caught:
        authenticate(attestation)
    return caught.value


def evidence(report: bytes, quote: VtpmQuote, chain: bytes) -> Attestation:
    """Return SEV-SNP evidence of parts that were stored apart from each other."""
    platform = AzureSnp(report, quote, tuple(split_pem(chain.decode())))
    return Attestation(Evidence(platform, Stack(CHALLENGE, (), "")))


def quoted(td_quote: bytes) -> Authenticated:
    """Return the content of a TD quote whose signatures are valid; its TCB is not evaluated."""
    quote = Quote.parse(td_quote)
    Dcap().precheck(quote, None, int(NOW.timestamp()))
    return Authenticated(quote.report_data)


def check_quote(found: Any, expected: dict[str, Any]) -> None:
    """Compare the facts of a verified quote with those of the independent reader."""
    attest = expected["attest"]
    assert (found.clock_ms, found.reset_count) == (attest["clock"], attest["reset_count"])
    assert found.restart_count == attest["restart_count"]
    values = {str(number): value.hex() for _, number, value in found.pcrs}
    assert values == expected["pcrs"]
    assert {bank for bank, _, _ in found.pcrs} == {"sha256"}


@pytest.mark.parametrize("name", SNP_EVIDENCE)
def test_azure_snp_evidence_verifies(name: str) -> None:
    """Whole evidence of two generations verifies under AMD's root, with all expected values."""
    expected = EXPECTED[name]
    attestation = Attestation.from_bytes(sample(name))
    examination = snp_verifier().examine(attestation, now=NOW)
    found = examination.authenticate()
    assert expected["binding_ok"] is expected["vcek"]["report_signature_ok"] is True
    assert found.report_data.rstrip(b"\0").hex() == expected["report_data"]
    assert found.vtpm is not None
    check_quote(found.vtpm, expected["tpm_quote"])
    details, claims = dict(found.vtpm.details), expected["hcl"]["vm_configuration"]
    assert details["vm_unique_id"] == claims["vmUniqueId"]
    assert details["secure_boot"] == str(claims["secure-boot"]).lower()
    assert details["console_enabled"] == str(claims["console-enabled"]).lower()
    assert "tpm_persisted" not in details
    outcomes = {step.check: step.outcome for step in found.steps}
    user_data = "passed" if expected["user_data_is_report_data"] else "skipped"
    assert outcomes["user_data"] == user_data
    examination.replay()
    examination.image_hash()
    examination.app_info()
    claimed = examination.claims()
    assert claimed.platform == "hcl-snp"
    report = expected["snp_report"]
    for field in ("measurement", "host_data", "id_key_digest", "chip_id", "reported_tcb"):
        assert claimed[field].hex() == report[field], field
    assert int.from_bytes(claimed["vmpl"], "little") == report["vmpl"] == 0
    assert int.from_bytes(claimed["guest_svn"], "little") == report["guest_svn"]


def test_azure_td_evidence_verifies_beside_a_quote_with_valid_signatures() -> None:
    """The TD quote's signatures are valid, and the rest of the evidence belongs to it.

    Collateral for its platform is not among the samples, so its TCB is not evaluated here.
    """
    expected = EXPECTED[TDX_EVIDENCE]
    attestation = Attestation.from_bytes(sample(TDX_EVIDENCE))
    platform = attestation.evidence.platform
    assert isinstance(platform, AzureTdx)
    assert platform.td_quote == sample("azure/trustee-tdx/td-quote.bin")
    assert platform.hcl_report == sample("azure/trustee-tdx/hcl-report.bin")
    found = AzureAuthenticator(AkChains()).authenticate(platform, quoted(platform.td_quote), NOW)
    assert found.report_data == CHALLENGE
    assert found.vtpm is not None
    check_quote(found.vtpm, expected["tpm_quote"])
    claims = expected["hcl"]["vm_configuration"]
    details = dict(found.vtpm.details)
    assert details["vm_unique_id"] == claims["vmUniqueId"]
    assert details["secure_boot"] == "true"
    assert details["tpm_persisted"] == details["tpm_persisted"] == "false"
    assert details["root_cert_thumbprint"] == claims["root-cert-thumbprint"]


@pytest.mark.parametrize(
    "name", ["azure/trustee-tdx/td-quote.bin", "azure/cvm-attestation-tools/td_quote_v4.dat"]
)
def test_azure_td_quote_has_the_expected_fields(name: str) -> None:
    """Quotes of Azure's metadata service parse, and their signatures are valid."""
    quote, expected = Quote.parse(sample(name)), EXPECTED[name]
    Dcap().precheck(quote, None, int(NOW.timestamp()))
    body = td_body(quote)
    assert quote.version == expected["version"]
    for field in ("tee_tcb_svn", "xfam", "mrtd", "report_data"):
        assert getattr(body, field).hex() == expected[field], field
    assert body.mr_seam.hex() == expected["mrseam"]
    assert body.td_attributes.hex() == expected["attributes"]
    assert [value.hex() for value in quote.rtmrs] == expected["rtmr"]
    check_attributes(body, behind_paravisor=True)


@pytest.mark.parametrize(
    "name", ["azure/kinvolk/hcl-report-tdx.bin", "azure/trustee-tdx/hcl-report.bin"]
)
def test_azure_td_report_has_the_expected_fields(name: str) -> None:
    """TD reports in HCL reports parse, hashes included, and RTMRs are zero."""
    report, expected = HclReport.parse(sample(name)), EXPECTED[name]["td_report"]
    found = TdReport.parse(report.hardware_report)
    for field in ("tee_tcb_svn", "xfam", "mrtd", "report_data", "mac"):
        assert getattr(found, field).hex() == expected[field], field
    assert found.mr_seam.hex() == expected["mrseam"]
    assert found.td_attributes.hex() == expected["attributes"]
    assert [value.hex() for value in found.rtmrs] == expected["rtmr"]
    assert report.binds(found.report_data) is EXPECTED[name]["binding_ok"]


@pytest.mark.parametrize(
    "name", ["azure/kinvolk/hcl-report-snp.bin", "azure/trustee-snp/hcl-report.bin"]
)
def test_azure_snp_report_has_the_expected_fields(name: str) -> None:
    """SEV-SNP reports in HCL reports parse, and are over the runtime data."""
    report, expected = HclReport.parse(sample(name)), EXPECTED[name]["snp_report"]
    found = SnpReport.parse(report.hardware_report)
    for field in ("measurement", "host_data", "id_key_digest", "chip_id", "reported_tcb"):
        assert getattr(found, field).hex() == expected[field], field
    assert (found.version, found.vmpl) == (expected["version"], expected["vmpl"])
    assert f"{found.policy:016x}" == expected["policy"]
    assert report.binds(found.report_data) is EXPECTED[name]["binding_ok"]


@every_case(
    ("name", "ak"),
    [
        ("azure/kinvolk/quote.bin", "azure/kinvolk/akpub.pem"),
        ("azure/trustee-tdx/quote.bin", "azure/trustee-tdx/hcl-report.bin"),
        ("azure/trustee-snp/tpm-quote-v1.json", "azure/trustee-snp/hcl-report.bin"),
        ("azure/trustee-tdx/tpm-quote-v1.json", "azure/trustee-tdx/hcl-report.bin"),
    ],
)
def test_azure_stored_quote_verifies_by_its_key(name: str, ak: str) -> None:
    """Quotes stored in bincode and JSON are signed by the key of their HCL report or file."""
    quote = coco_quote(name) if name.endswith(".json") else read_bincode_quote(sample(name))
    if ak.endswith(".pem"):
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            PublicFormat,
            load_pem_public_key,
        )

        key = load_pem_public_key(sample(ak))
        spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    else:
        spki = HclReport.parse(sample(ak)).content.attestation_key.spki
    expected = EXPECTED[name]
    found = verify_tpm_quote(quote.message, quote.signature, spki, pcr_values=quote.pcr_values)
    assert found.attest.extra_data == b"challenge"
    assert expected["signature_ok"] is expected["pcr_digest_ok"] is expected["nonce_ok"] is True
    check_quote(found.facts("hardware_report"), expected)
    signer = TpmsAttest.parse(quote.message).qualified_signer
    assert signer.hex() == expected["attest"]["qualified_signer"]


def test_azure_report_and_quote_stored_apart_verify_together() -> None:
    """HCL report, VCEK and quote of one VM, each in its own file, are evidence."""
    report = sample("azure/trustee-snp/hcl-report.bin")
    quote = coco_quote("azure/trustee-snp/tpm-quote-v1.json")
    found = authenticate(evidence(report, quote, sample("azure/trustee-snp/vcek.pem")))
    assert found.vtpm is not None
    assert found.vtpm.key_trust == "hardware_report"


def test_azure_quote_of_another_vm_is_rejected() -> None:
    """The quote of nine PCRs is signed by the key of another VM."""
    signature = sample("azure/trustee-snp/tpm-quote.sig")
    message = sample("azure/trustee-snp/tpm-quote.msg")
    other = VtpmQuote(message, TpmtSignature("rsassa", "sha256", signature).encode(), ())
    assert len(TpmsAttest.parse(message).selections[0].pcrs) == 9
    report, chain = (sample(f"azure/trustee-snp/{name}") for name in ("hcl-report.bin", "vcek.pem"))
    error = rejection(evidence(report, other, chain))
    assert error.reason == "tpm_quote_bad_signature"
    kinvolk = read_bincode_quote(sample("azure/kinvolk/quote.bin"))
    assert rejection(evidence(report, kinvolk, chain)).reason == "tpm_quote_bad_signature"


def test_azure_vcek_of_another_chip_is_rejected() -> None:
    """The certificates beside one HCL report are of another chip."""
    report = sample("azure/kinvolk/hcl-report-snp.bin")
    quote = read_bincode_quote(sample("azure/kinvolk/quote.bin"))
    error = rejection(evidence(report, quote, sample("azure/kinvolk/certs.pem")))
    assert isinstance(error, SignatureError)
    assert error.reason in {"chip_id_mismatch", "tcb_mismatch"}


@pytest.mark.parametrize(
    ("report", "quote"),
    [
        ("azure/kinvolk/hcl-report-tdx.bin", "azure/trustee-tdx/td-quote.bin"),
        ("azure/trustee-tdx/hcl-report.bin", "azure/cvm-attestation-tools/td_quote_v4.dat"),
    ],
)
def test_azure_td_quote_of_another_report_is_rejected(report: str, quote: str) -> None:
    """A TD quote, whose own signatures are valid, must be that of the TD report."""
    td_quote = sample(quote)
    assert EXPECTED[quote]["quote_signature_ok"] is True
    hardware = quoted(td_quote)
    assert hardware.report_data.hex() == EXPECTED[quote]["report_data"]
    vtpm = read_bincode_quote(sample("azure/trustee-tdx/quote.bin"))
    with raises(VerificationError, "hcl_binding"):
        AzureAuthenticator(AkChains()).authenticate(
            AzureTdx(sample(report), vtpm, td_quote), hardware, NOW
        )


def test_azure_certificates_are_those_of_the_samples() -> None:
    """The built-in root and authority are Microsoft's, by their hashes."""
    names = ("azure-virtual-tpm-root-2023.pem", "global-virtual-tpm-ca-03.pem")
    for name, der in zip(names, (azure_root(), *azure_authorities()), strict=True):
        assert sha256(der).hex() == EXPECTED[f"azure/ca/{name}"]["sha256"]
