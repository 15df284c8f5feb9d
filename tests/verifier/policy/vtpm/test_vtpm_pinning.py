"""Rules that pin TPM, paravisor and cloud instance of known-good evidence."""

from dataclasses import replace
from typing import Any

from attestkit._crypto.hashes import sha256
from attestkit.verifier.policy.appraisal_policy import (
    AppraisalPolicy,
)
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.verifier.policy.policy_samples import (
    NITRO,
    SGX,
    SNP,
    TDX,
    TPM_ALONE,
    appraise,
    authenticated,
    claims,
    get_rejection_text,
    register,
    result,
    vtpm,
)
from tests.verifier.policy.vtpm.vtpm_policies import (
    HCL,
    KEY,
    SHA,
    azure_claims,
    with_pcr,
)


@every_case("platform", [*HCL, "gcp-snp", "dstack-gcp-tdx", *TPM_ALONE])
def test_pinned_policy_accepts_its_evidence_and_no_other_pcr(platform: str) -> None:
    """PCRs with a replayed log are pinned, except for those that differ with every boot."""
    trust: Any = "listed" if platform in {"tpm", "go-tpm-tools"} else "certificate"
    joins: Any = () if platform in TPM_ALONE else ("ak_to_hardware",)
    evidence = claims(platform, vtpm=vtpm(key_trust=trust, joins=joins))
    verified = authenticated(platform)
    policy = AppraisalPolicy.from_evidence(result(evidence, verified, None))
    assert AppraisalPolicy.from_toml(policy.to_toml()) == policy
    assert appraise(policy, evidence, verified, None, simulated=False)
    left_out = {10, 14} if evidence.events else {10}
    replayed = {(bank, index) for bank, index in vtpm().replayed if index not in left_out}
    assert [name for name, _ in untyped(policy.pcrs)] == [f"{b}:{i}" for b, i in sorted(replayed)]
    changed = with_pcr("sha256", 4, SHA, key_trust=trust, joins=joins)
    get_rejection_text(
        "pcrs", policy, replace(evidence, vtpm=changed), verified, None, simulated=False
    )


def test_pinned_policy_of_azure_identifies_the_paravisor() -> None:
    """Paravisor, its signer and its claims are pinned, and the platform is then named."""
    snp = AppraisalPolicy.from_evidence(result(azure_claims(), authenticated("hcl-snp"), None))
    assert snp.platforms == {"azure-snp"}
    assert snp.paravisor_measurement == {register(0x31)}
    assert snp.id_key_digest == {register(0x71)}
    assert (snp.secure_boot, snp.console_enabled, snp.tpm_persisted) == (True, False, True)
    assert not {"measurement", "id_key_digest", "host_data"} & snp.reference_values.rules.keys()
    tdx = AppraisalPolicy.from_evidence(
        result(azure_claims("hcl-tdx"), authenticated("hcl-tdx"), None)
    )
    assert (tdx.platforms, tdx.paravisor_measurement) == ({"azure-tdx"}, {register(0x11)})
    assert tdx.id_key_digest is None
    assert tdx.reference_values.rules.keys() == {"mr_signer_seam"}
    unsigned = azure_claims(id_key_digest=bytes(48))
    policy = AppraisalPolicy.from_evidence(result(unsigned, authenticated("hcl-snp"), None))
    assert policy.id_key_digest is None


def test_pinned_policy_of_google_names_the_project() -> None:
    """The project and the joins are pinned; zone and instance are not."""
    found = AppraisalPolicy.from_evidence(result(claims("gcp-snp"), authenticated("gcp-snp"), None))
    assert found.gce_project == {"project"}
    assert found.require_joins == {"ak_to_hardware"}
    assert (found.gce_zone, found.gce_instance, found.trusted_aks) == (None, None, None)


def test_pinned_policy_of_a_listed_key_lists_it() -> None:
    """The key of a TPM that only a policy lists is listed again."""
    evidence = claims("tpm", vtpm=vtpm(key_trust="listed", joins=()))
    found = AppraisalPolicy.from_evidence(result(evidence, authenticated("tpm"), None))
    assert found.trusted_aks == {sha256(KEY)}


def test_platforms_without_tpm_are_pinned_as_before() -> None:
    """No rule about a TPM is in the policy of other evidence."""
    for platform in (TDX, SNP, NITRO, SGX):
        found = AppraisalPolicy.from_evidence(
            result(claims(platform), authenticated(platform), None)
        )
        assert (found.pcrs, found.trusted_aks, found.require_joins) == ((), None, frozenset())
