"""Appraisal of Azure's evidence from end to end: only a known paravisor makes it Azure's."""

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import AzureSnp, AzureTdx
from attestkit.errors import PolicyError
from attestkit.report_data import ReportData
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.result import AttestationResult
from tests.attestation.hcl import CLAIMS
from tests.raising import raises
from tests.vectors import data, needs_shared
from tests.verifier.platforms import azure
from tests.verifier.platforms.vtpm.tpm_samples import vtpm_json

NONCE = b"a nonce of the relying party"
BOUND = ReportData.for_nonce(NONCE)
ID_KEY = b"\x1d" * 48
MEASUREMENT = {"snp": b"\x5a" * 48, "tdx": b"\x7d" * 48}
ID_KEY_DIGEST = 0x0E0  # offset in the SEV-SNP report

MAKE = Callable[..., AzureSnp | AzureTdx]


def make(kind: str, *, extra: bytes = BOUND, **members: Any) -> AzureSnp | AzureTdx:
    """Return evidence over report data, with members of the runtime data replaced."""
    runtime, quote = azure.runtime(extra, **members), azure.quote(extra)
    if kind == "snp":
        return azure.snp(runtime, {ID_KEY_DIGEST: ID_KEY}, quote)
    return azure.tdx(runtime, vtpm_quote=quote, mrtd=MEASUREMENT["tdx"])


def verify(
    platform: AzureSnp | AzureTdx, policy: AppraisalPolicy | None = None
) -> AttestationResult:
    """Verify evidence bound to the nonce."""
    evidence = azure.attestation(platform, BOUND).to_bytes("cbor")
    return azure.verifier(platform, policy=policy).verify(evidence, nonce=NONCE)


def pinned(kind: str, **rules: Any) -> AppraisalPolicy:
    """Return the default policy with rules, for evidence of a kind under either name."""
    return AppraisalPolicy.default().replace(platforms=(f"hcl-{kind}", f"azure-{kind}"), **rules)


both = pytest.mark.parametrize("kind", ["snp", "tdx"])


@both
def test_azure_evidence_is_bound_to_a_nonce_and_not_called_azure(kind: str) -> None:
    """The default policy accepts evidence of an unknown paravisor under the name of its format."""
    result = verify(make(kind))
    assert result.claims.platform == f"hcl-{kind}"
    assert result.fresh
    assert result.simulated
    assert result.registers is None
    assert {"paravisor", "pcr_log", "ak_certificate"} <= {*result.not_proven}
    assert not {"user_data", "hardware_to_ak", "tpm_quote"} & {*result.not_proven}
    with raises(PolicyError, "platform"):
        verify(make(kind), AppraisalPolicy.strict())


@both
def test_azure_paravisor_by_measurement_makes_it_azure(kind: str) -> None:
    """A paravisor with the pinned MEASUREMENT or MRTD is Azure's; another one is refused."""
    found = verify(make(kind), pinned(kind, paravisor_measurement=[MEASUREMENT[kind]]))
    assert found.claims.platform == f"azure-{kind}"
    assert "paravisor" not in found.not_proven
    with raises(PolicyError, "paravisor_measurement"):
        verify(make(kind), pinned(kind, paravisor_measurement=[b"\1" * 48]))


def test_azure_paravisor_by_its_signer_makes_it_azure() -> None:
    """The digest of the ID key identifies the signer of the paravisor; a TD has none."""
    assert verify(make("snp"), pinned("snp", id_key_digest=[ID_KEY])).claims.platform == "azure-snp"
    with raises(PolicyError, "id_key_digest"):
        verify(make("snp"), pinned("snp", id_key_digest=[b"\1" * 48]))


@both
def test_azure_rules_about_the_guest_are_enforced(kind: str) -> None:
    """Claims of the paravisor, PCRs and joins have rules."""
    pcr = azure.PCRS["sha256", 7]
    good = {
        "secure_boot": True,
        "console_enabled": False,
        "tpm_persisted": True,
        "pcrs": {"sha256:7": pcr},
        "require_joins": ["hardware_to_ak"],
    }
    verify(make(kind), pinned(kind, **good))
    console = CLAIMS | {"console-enabled": True, "secure-boot": False, "tpm-persisted": False}
    open_vm = make(kind, vm_configuration=console)
    for name in ("secure_boot", "console_enabled", "tpm_persisted"):
        with raises(PolicyError, name):
            verify(open_vm, pinned(kind, **{name: good[name]}))
        with raises(PolicyError, name):
            verify(make(kind, vm_configuration={}), pinned(kind, **{name: good[name]}))
    with raises(PolicyError, "pcrs"):
        verify(make(kind), pinned(kind, pcrs={"sha256:7": bytes(32)}))
    with raises(PolicyError, "require_joins"):
        verify(make(kind), pinned(kind, require_joins=["ak_to_hardware"]))


def test_azure_init_data_are_the_only_extension_of_pcr_8() -> None:
    """PCR 8 is SHA-256(zeros, digest) for an accepted digest."""
    digest = sha256(b"init data")
    pcrs = azure.PCRS | {("sha256", 8): sha256(bytes(32) + digest)}
    platform = azure.snp(azure.runtime(BOUND), vtpm_quote=azure.quote(BOUND, pcrs=pcrs))
    verify(platform, pinned("snp", init_data=[digest]))
    for other in (make("snp"), platform):
        with raises(PolicyError, "init_data"):
            verify(other, pinned("snp", init_data=[sha256(b"other")]))


@both
def test_azure_evidence_over_another_nonce_is_rejected(kind: str) -> None:
    """A quote over other report data is not fresh."""
    platform = make(kind, extra=azure.REPORT_DATA)
    evidence = azure.attestation(platform, azure.REPORT_DATA)
    with raises(PolicyError, "report_data"):
        azure.verifier(platform).verify(evidence, nonce=NONCE)


@needs_shared
def test_azure_genuine_evidence_is_azures_by_its_paravisor() -> None:
    """A genuine VM is accepted under AMD's root, and named by its measurement or signer."""
    name = "azure/trustee-snp/evidence-v1.json"
    report = vtpm_json("expected.json")[name]["snp_report"]
    now = datetime(2026, 6, 1, tzinfo=timezone.utc)
    names = {
        "hcl-snp": {},
        "azure-snp": {"paravisor_measurement": [bytes.fromhex(report["measurement"])]},
    }
    signer = {"id_key_digest": [bytes.fromhex(report["id_key_digest"])]}
    for platform, rules in (*names.items(), ("azure-snp", signer)):
        verifier = Verifier(
            snp_certificates=[data("snp/go-sev-guest/ask_ark_milan.pem")],
            policy=pinned("snp", refuse_simulated=True, **rules),
        )
        found = verifier.verify(data(f"vtpm/{name}"), report_data=b"challenge", now=now)
        assert found.claims.platform == platform
        assert not found.simulated
        again = AppraisalPolicy.from_evidence(found)
        repeated = Verifier(
            snp_certificates=[data("snp/go-sev-guest/ask_ark_milan.pem")], policy=again
        )
        evidence = Attestation.from_bytes(data(f"vtpm/{name}"))
        repeated.verify(evidence, report_data=b"challenge", now=now)
