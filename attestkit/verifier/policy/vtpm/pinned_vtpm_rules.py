"""Rules of a policy that pin TPM, paravisor and cloud instance of known-good evidence."""

from typing import Any, Final

from attestkit._crypto.hashes import sha256
from attestkit.tpm.pcrs import EVENT_PCR, IMA_PCR
from attestkit.verifier.claims import PARAVISOR_CLAIMS, Claims, VtpmFacts
from attestkit.verifier.policy.launch_claims import (
    is_signed_by_vlek,
    launch_measurement,
    vlek_provider,
)
from attestkit.verifier.policy.platforms import (
    GCP_SNP,
    GCP_TDX,
    GO_TPM_TOOLS,
    HCL_PLATFORMS,
    is_snp,
    measures_events,
)
from attestkit.verifier.policy.vtpm.pcr_rules import BANK_SIZES

_AT_GOOGLE: Final = frozenset({GCP_TDX, GCP_SNP, GO_TPM_TOOLS})


def pinned_vtpm(claims: Claims) -> dict[str, Any]:
    """Return the rules; PCRs are pinned if a log explains them."""
    found: dict[str, Any] = {}
    if is_snp(claims) and is_signed_by_vlek(claims):
        found["vlek_providers"] = tuple(filter(None, [vlek_provider(claims)]))
    if (vtpm := claims.vtpm) is None:
        return found
    found["pcrs"] = _pinned_pcrs(claims, vtpm)
    found["require_joins"] = vtpm.joins
    if vtpm.key_trust == "listed":
        found["trusted_aks"] = (sha256(vtpm.attestation_key),)
    details = dict(vtpm.details)
    if claims.platform in _AT_GOOGLE and (project := details.get("gce_project")):
        found["gce_project"] = (project,)
    if claims.platform in HCL_PLATFORMS:
        found |= _pinned_paravisor(claims, details)
    return found


def _pinned_pcrs(claims: Claims, vtpm: VtpmFacts) -> dict[str, tuple[bytes, ...]]:
    # The programs that ran differ with every boot; runtime events have rules of their own.
    left_out = {IMA_PCR, EVENT_PCR} if measures_events(claims) else {IMA_PCR}
    return {
        f"{bank}:{index}": (value,)
        for bank, index, value in vtpm.pcrs
        if bank in BANK_SIZES and index not in left_out and (bank, index) in vtpm.replayed
    }


def _pinned_paravisor(claims: Claims, details: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    _, measurement = launch_measurement(claims)
    if measurement:
        found["paravisor_measurement"] = (measurement,)
    signer = claims.get("id_key_digest") or b""
    if any(signer):
        found["id_key_digest"] = (signer,)
    states = {"true": True, "false": False}
    stated = {name: states.get(details.get(name, "")) for name in PARAVISOR_CLAIMS}
    return found | {name: state for name, state in stated.items() if state is not None}
