"""Checks of Azure's samples against `expected.json`."""

import json
from collections.abc import Callable

from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import split_pem
from attestkit.attestation import Attestation
from attestkit.attestation.azure import HclReport
from attestkit.attestation.coco import read_bincode_quote
from attestkit.attestation.wire.evidence_parts import AzureSnp, AzureTdx, VtpmQuote, td_body
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.td_report import TdReport
from attestkit.tpm import TpmsAttest, TpmtSignature
from attestkit.verifier.dcap.engine import Dcap
from attestkit.verifier.platforms.vtpm.quote import verify_tpm_quote
from tests.verifier.platforms import test_azure_samples as azure_tests
from tests.verifier.platforms.vtpm import test_quote as quotes
from tests.verifier.vtpm_samples import facts
from tests.verifier.vtpm_samples.facts import Facts, holds
from tests.verifier.vtpm_samples.samples import (
    EXPECTED,
    NOW,
    SNP,
    ak_of,
    certificate,
    sample,
    signed_by,
)


def hcl_report(name: str) -> None:
    """Header, runtime data, hardware report and binding are the expected ones."""
    assert facts.hcl_evidence_facts(sample(name)) == EXPECTED[name]


def azure_quote(quote: VtpmQuote, spki: bytes) -> Facts:
    """Return the facts of a quote over `challenge`, which must be valid."""
    found = verify_tpm_quote(quote.message, quote.signature, spki, pcr_values=quote.pcr_values)
    return {
        "attest": facts.attest_facts(quote.message),
        "signature_bytes": len(TpmtSignature.parse(quote.signature).signature),
        "signature_ok": True,
        "pcr_count": len(quote.pcr_values),
        "pcr_digest_ok": True,
        "pcrs": facts.pcr_facts(quote.pcr_values),
        "nonce_ok": found.attest.extra_data == b"challenge",
    }


def bincode_quote(name: str, key: Callable[[], bytes]) -> None:
    """A quote in bincode is valid, by the key at hand."""
    form = EXPECTED[name]["form"]
    found = azure_quote(read_bincode_quote(sample(name)), key())
    assert {"form": form, **found} == EXPECTED[name]


def kinvolk_key() -> bytes:
    """Return the attestation key beside kinvolk's quote."""
    return quotes.azure().key


def coco_quote(name: str) -> None:
    """A quote in CoCo's JSON is valid, by the key of the HCL report that the entry names."""
    owner = EXPECTED[name]["ak_of"]
    found = azure_quote(azure_tests.coco_quote(name), ak_of(sample(owner)))
    assert {"ak_of": owner, **found} == EXPECTED[name]


def quote_of_another_vm(name: str) -> None:
    """The fields are the expected ones, and the signature is not by the HCL report's key."""
    expected = EXPECTED[name]
    message, raw = sample(name), sample(expected["signature"])
    signature = TpmtSignature("rsassa", "sha256", raw).encode()
    spki = ak_of(sample(f"{SNP}/hcl-report.bin"))
    valid = holds(lambda: verify_tpm_quote(message, signature, spki, pcr_values=()))
    assert facts.attest_facts(message) == expected["attest"]
    assert valid is expected["signature_ok_with_ak_of_hcl_report"]
    azure_tests.test_azure_quote_of_another_vm_is_rejected()


def vcek(name: str, report: str) -> None:
    """Chain, chip and TCB of a VCEK, and the report's signature, are as expected."""
    expected = EXPECTED[name]
    chain = split_pem(sample(name).decode())
    assert [facts.subject(der) for der in chain] == expected["certificates"]
    assert expected.get("for_report", report) == report
    found = SnpReport.parse(HclReport.parse(sample(report)).hardware_report)
    assert facts.amd_facts(chain[0], found, expected["chain"]) == facts.expected_amd(expected)


def azure_snp_evidence(name: str) -> None:
    """Whole evidence on SEV-SNP has the expected values, and a verifier accepts it."""
    expected = EXPECTED[name]
    found = Attestation.from_bytes(sample(name))
    platform = found.evidence.platform
    assert isinstance(platform, AzureSnp)
    quote, report = platform.vtpm_quote, HclReport.parse(platform.hcl_report)
    signed = SnpReport.parse(report.hardware_report)
    version = json.loads(sample(name)).get("version", 0)
    seen = {
        "version": version,
        "report_data": TpmsAttest.parse(quote.message).extra_data.hex(),
        "tpm_quote": azure_quote(quote, report.content.attestation_key.spki),
        "vcek": facts.amd_facts(platform.cert_chain[0], signed, expected["vcek"]["chain"]),
        "user_data_is_report_data": report.content.user_data == found.report_data,
        **facts.hcl_evidence_facts(platform.hcl_report),
    }
    assert seen == expected | {"vcek": facts.expected_amd(expected["vcek"])}
    azure_tests.test_azure_snp_evidence_verifies(name)


def azure_td_evidence(name: str) -> None:
    """Whole evidence on TDX has the expected values, and a verifier accepts all but the TCB."""
    expected = EXPECTED[name]
    platform = Attestation.from_bytes(sample(name)).evidence.platform
    assert isinstance(platform, AzureTdx)
    report = HclReport.parse(platform.hcl_report)
    reported, body = TdReport.parse(report.hardware_report), td_body(Quote.parse(platform.td_quote))
    same = ("mrtd", "xfam", "report_data")
    equal = {name: getattr(reported, name) == getattr(body, name) for name in same}
    equal |= {"rtmr": reported.rtmrs == body.rtmrs, "mrseam": reported.mr_seam == body.mr_seam}
    equal |= {"attributes": reported.td_attributes == body.td_attributes}
    seen = {
        "version": json.loads(sample(name))["version"],
        "report_data": TpmsAttest.parse(platform.vtpm_quote.message).extra_data.hex(),
        "tpm_quote": azure_quote(platform.vtpm_quote, report.content.attestation_key.spki),
        "td_quote": td_quote_facts(platform.td_quote),
        "td_quote_binding_ok": report.binds(body.report_data),
        "td_quote_equals_td_report": equal,
        **facts.hcl_evidence_facts(platform.hcl_report),
    }
    assert seen == expected
    azure_tests.test_azure_td_evidence_verifies_beside_a_quote_with_valid_signatures()


def td_quote_facts(raw: bytes) -> Facts:
    """Return the facts of a TD quote of Intel's platforms, whose signatures are checked."""
    valid = holds(lambda: Dcap().precheck(Quote.parse(raw), None, int(NOW.timestamp())))
    return facts.td_quote_facts(raw, valid=valid)


def td_quote(name: str) -> None:
    """A quote of Azure's metadata service has the expected fields and valid signatures."""
    assert td_quote_facts(sample(name)) == EXPECTED[name]


def azure_ca(name: str) -> None:
    """A certificate of Azure's vTPM authorities is built in, and the root signed it."""
    found = certificate(name)
    root = certificate("azure/ca/azure-virtual-tpm-root-2023.pem")
    expected = dict(EXPECTED[name])
    assert expected.pop("sha256") == sha256(found.der).hex()
    assert expected.pop("signed_by_root") is signed_by(found, root)
    assert facts.certificate_facts(found.der) == expected
    azure_tests.test_azure_certificates_are_those_of_the_samples()
