"""Each entry of `data/vtpm/expected.json`: the values and verdicts of an independent reader.

The dictionary that a check builds has all members of the entry, so that a member without a check
fails, too. Where a whole verifier judges the sample, its verdict is checked beside the values.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.attestation.go_tpm_tools import GoTpmToolsMessage
from attestkit.event_log import TpmEventLog
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, needs_shared
from tests.verifier.platforms import test_gcp as gcp
from tests.verifier.platforms import test_nitro_tpm as nitro_tpm
from tests.verifier.platforms.vtpm.tpm_samples import vtpm_json
from tests.verifier.vtpm_samples.aws_checks import nitro_document, nitro_quote, vlek_report
from tests.verifier.vtpm_samples.azure_checks import (
    azure_ca,
    azure_snp_evidence,
    azure_td_evidence,
    bincode_quote,
    coco_quote,
    hcl_report,
    kinvolk_key,
    quote_of_another_vm,
    td_quote,
    vcek,
)
from tests.verifier.vtpm_samples.generic_checks import (
    composed,
    generic_quote,
    lone_attest,
    swtpm_boot,
)
from tests.verifier.vtpm_samples.google_checks import (
    firmware_log,
    google_ca,
    google_fixture,
    google_message,
    google_two_intermediates,
)
from tests.verifier.vtpm_samples.samples import (
    EXPECTED,
    KINVOLK,
    NITRO_TPM,
    SNP,
    TDX,
    VAPORTPM,
    ak_of,
    sample,
)

CHECKS: Final[dict[str, Callable[[str], None]]] = {
    f"{KINVOLK}/hcl-report-snp.bin": hcl_report,
    f"{KINVOLK}/hcl-report-tdx.bin": hcl_report,
    f"{SNP}/hcl-report.bin": hcl_report,
    f"{TDX}/hcl-report.bin": hcl_report,
    f"{KINVOLK}/quote.bin": partial(bincode_quote, key=kinvolk_key),
    f"{TDX}/quote.bin": partial(bincode_quote, key=lambda: ak_of(sample(f"{TDX}/hcl-report.bin"))),
    f"{SNP}/tpm-quote-v1.json": coco_quote,
    f"{TDX}/tpm-quote-v1.json": coco_quote,
    f"{SNP}/tpm-quote.msg": quote_of_another_vm,
    f"{SNP}/vcek.pem": partial(vcek, report=f"{SNP}/hcl-report.bin"),
    f"{KINVOLK}/certs.pem": partial(vcek, report=f"{KINVOLK}/hcl-report-snp.bin"),
    f"{SNP}/evidence-v0.json": azure_snp_evidence,
    f"{SNP}/evidence-v1.json": azure_snp_evidence,
    f"{TDX}/evidence-v1.json": azure_td_evidence,
    f"{TDX}/td-quote.bin": td_quote,
    "azure/cvm-attestation-tools/td_quote_v4.dat": td_quote,
    "azure/ca/azure-virtual-tpm-root-2023.pem": azure_ca,
    "azure/ca/global-virtual-tpm-ca-03.pem": azure_ca,
    "gcp/go-tpm-tools/ca-certs": google_ca,
    VAPORTPM: google_fixture,
    "gcp/salrashid123": google_two_intermediates,
    "gcp/go-tpm-tools/gce-cos-85-nonce9009.pb": google_message,
    "gcp/go-tpm-tools/eventlogs/ubuntu-2404-amd-sevsnp.bin": firmware_log,
    "gcp/go-tpm-tools/eventlogs/eventlogwithsp800155.bin": firmware_log,
    NITRO_TPM: nitro_document,
    "aws/vaportpm/test-nitro-fixture.json": nitro_quote,
    "aws/trustee/test-vlek-report.bin": vlek_report,
    "generic/trustee/tpm_evidence.json": generic_quote,
    "generic/dstack/tpm_quote_sample.bin": lone_attest,
    "generic/qemu-swtpm": swtpm_boot,
    "composed/gcp-tdx": partial(
        composed,
        verdict=gcp.test_composed_evidence_has_its_verdict,
        claims=lambda: None,  # the verdict of the good case has them
    ),
    "composed/aws-nitro-tpm": partial(
        composed,
        verdict=nitro_tpm.test_nitro_tpm_composed_evidence_has_its_verdict,
        claims=nitro_tpm.test_nitro_tpm_composed_evidence_has_the_expected_claims,
    ),
}


@pytest.mark.skipif(not HAVE_SHARED, reason="the shared vectors are missing")
def test_each_entry_has_a_check() -> None:
    """The 32 entries of expected.json and the checks here are the same."""
    assert set(CHECKS) == set(EXPECTED)
    assert len(CHECKS) == 32


@needs_shared
@every_case("name", CHECKS)
def test_entry_has_expected_values_and_verdict(name: str) -> None:
    """All values and verdicts of an entry are those of the independent reader."""
    CHECKS[name](name)


@needs_shared
def test_values_of_go_tpm_tools_are_expected() -> None:
    """PCRs and log of its messages are the expected ones; no group of the file is without a test.

    `keys` are tested in `tests/tpm/test_public_area.py`, `quotes` and `two_banks` in
    `vtpm/test_quote.py`, `attestations`, `attacks` and `extra` in `test_go_tpm_tools.py`.
    """
    expected = vtpm_json("generic/go-tpm-tools/expected.json")
    tested = {"keys", "quotes", "two_banks", "attestations", "attacks", "extra"}
    assert set(expected) == tested | {"nonce", "pcrs", "log"}
    assert sample("generic/go-tpm-tools/nonce.bin").hex() == expected["nonce"]
    for case in expected["attestations"]:
        message = GoTpmToolsMessage.parse(sample(f"generic/go-tpm-tools/{case['file']}"))
        assert sha256(message.event_log).hex() == expected["log"]["sha256"]
        assert list(TpmEventLog.parse(message.event_log).banks) == expected["log"]["banks"]
        for quote in message.quotes:
            bank = expected["pcrs"][quote.pcr_values[0].algorithm]
            found = {str(one.number): one.value.hex() for one in quote.pcr_values}
            assert {n: found[n] for n in bank} == bank
