"""Policies with every rule about guests with a TPM, which sample claims meet; as objects and TOML.

The claims of Azure are `azure_claims()`, those of Google `claims("gcp-snp")`.
"""

from dataclasses import replace
from typing import Any, Final

from attestkit._crypto.hashes import sha256
from attestkit.verifier.claims import Claims, TcbStatus
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from tests.verifier.policy.policy_samples import (
    OF_SNP,
    OF_TDX,
    TPM_ALONE,
    appraise_in_steps,
    authenticated,
    claims,
    get_rejection_text,
    register,
    vtpm,
)

HCL: Final = ("hcl-snp", "hcl-tdx")
WITH_TPM: Final = (*OF_TDX[:2], *OF_SNP[:2], *TPM_ALONE)
PARAVISOR: Final = {"hcl-snp": register(0x31), "hcl-tdx": register(0x11)}
AZURE: Final = {"hcl-snp": "azure-snp", "hcl-tdx": "azure-tdx"}
SHA: Final = register(1, 32)
INIT_DATA: Final = register(0x88, 32)
INIT_PCR: Final = sha256(bytes(32) + INIT_DATA)
KEY: Final = vtpm().attestation_key


def reject(reason: str, policy: AppraisalPolicy, evidence: Claims) -> str:
    """Return the text of a rejection of claims, of a platform whose status is up to date."""
    return get_rejection_text(reason, policy, evidence, authenticated(evidence.platform), None)


def accept(policy: AppraisalPolicy, evidence: Claims) -> dict[str, str]:
    """Return the outcome of the last step of each check, in an appraisal that accepts claims."""
    verified = authenticated(evidence.platform)
    steps = appraise_in_steps(policy, evidence, verified, None, simulated=False)
    return {step.check: step.outcome for step in steps}


def with_pcr(bank: str, index: int, value: bytes, **changes: Any) -> Any:
    """Return the sample facts of a TPM with another value of a PCR."""
    facts = vtpm(**changes)
    pcrs = tuple(
        (name, at, value if (name, at) == (bank, index) else old) for name, at, old in facts.pcrs
    )
    return replace(facts, pcrs=pcrs)


def azure_claims(platform: str = "hcl-snp", **changes: Any) -> Claims:
    """Return claims of a guest behind a paravisor, with init-data in PCR 8."""
    facts = with_pcr(
        *("sha256", 8, INIT_PCR), key_trust="hardware_report", joins=("hardware_to_ak",)
    )
    return claims(platform, **{"vtpm": facts, **changes})


AZURE_POLICY: Final = AppraisalPolicy(
    accepted_statuses={TcbStatus.UP_TO_DATE},
    platforms={"azure-snp"},
    pcrs={
        "sha384:7": [register(0xC7)],
        "sha256:7": (register(0xA7, 32), register(1, 32)),
        "sha256:11": [register(0xAB, 32)],
    },
    trusted_aks={KEY},
    require_joins={"hardware_to_ak"},
    paravisor_measurement={register(0x31)},
    id_key_digest={register(0x71), register(0x70)},
    secure_boot=True,
    console_enabled=False,
    tpm_persisted=True,
    init_data={INIT_DATA},
    vlek_providers={"cc-us-east-2.amazonaws.com"},
)
GOOGLE_POLICY: Final = AppraisalPolicy(
    accepted_statuses={TcbStatus.UP_TO_DATE},
    platforms={"gcp-snp", "dstack-gcp-tdx"},
    require_joins={"ak_to_hardware"},
    gce_project={"project", "other"},
    gce_zone={"zone-a"},
    gce_instance={"123"},
)

AZURE_FILE: Final = f"""
accepted_statuses = "UpToDate"
platforms = "azure-snp"
trusted_aks = "{KEY.hex()}"
require_joins = ["hardware_to_ak"]
paravisor_measurement = "{"31" * 48}"
id_key_digest = ["{"71" * 48}", "{"70" * 48}"]
secure_boot = true
console_enabled = false
tpm_persisted = true
init_data = "{"88" * 32}"
vlek_providers = "cc-us-east-2.amazonaws.com"

[pcrs]
"sha256:7" = ["{"a7" * 32}", "{"01" * 32}"]
"sha256:11" = "{"ab" * 32}"
"sha384:7" = "{"c7" * 48}"
"""
GOOGLE_FILE: Final = """
accepted_statuses = "UpToDate"
platforms = ["gcp-snp", "dstack-gcp-tdx"]
require_joins = "ak_to_hardware"
gce_project = ["project", "other"]
gce_zone = "zone-a"
gce_instance = "123"
"""
