"""Platforms that a policy may name, groups of platforms to which rules apply, and debug mode.

No rule about TDs or SEV-SNP guests applies to messages of go-tpm-tools: hardware evidence in them
is not verified.
"""

from typing import Final

from attestkit.errors import PolicyError
from attestkit.event_log.event import RUNTIME_REGISTER
from attestkit.tpm.pcrs import EVENT_PCR
from attestkit.verifier.claims import Claims

TDX: Final = "dstack-tdx"
SNP: Final = "dstack-amd-sev-snp"
NITRO: Final = "dstack-nitro-enclave"
SGX: Final = "sgx"
GCP_TDX: Final = "dstack-gcp-tdx"
GCP_SNP: Final = "gcp-snp"
NITRO_TPM: Final = "dstack-aws-nitro-tpm"
TPM: Final = "tpm"
GO_TPM_TOOLS: Final = "go-tpm-tools"

VERIFIED_PLATFORMS: Final = (
    *(TDX, SNP, NITRO, SGX),
    *(GCP_TDX, GCP_SNP),
    *("hcl-snp", "hcl-tdx", "azure-snp", "azure-tdx"),
    *(NITRO_TPM, TPM, GO_TPM_TOOLS),
)
"""Supported platforms, with the names of `Claims.platform`.

Evidence of `hcl-snp` and `hcl-tdx` is `azure-snp` and `azure-tdx` once a policy has identified its
paravisor.
"""

AZURE: Final = {"hcl-snp": "azure-snp", "hcl-tdx": "azure-tdx"}
"""Name of evidence whose paravisor is identified, by the name of its format."""

HCL: Final = {name: form for form, name in AZURE.items()}
"""Name of the format, by the name of evidence whose paravisor is identified."""

ONLY_IF_NAMED: Final = frozenset({SGX, NITRO_TPM, TPM, GO_TPM_TOOLS})
"""Platforms that no preset accepts.

None of them has a verified statement of a CPU about the guest, except for SGX, whose evidence is
of an enclave.
"""

TD_PLATFORMS: Final = frozenset({TDX, GCP_TDX, "hcl-tdx", "azure-tdx"})
SNP_PLATFORMS: Final = frozenset({SNP, GCP_SNP, "hcl-snp", "azure-snp"})
HCL_PLATFORMS: Final = frozenset({*AZURE, *HCL})
VTPM_PLATFORMS: Final = HCL_PLATFORMS | {GCP_TDX, GCP_SNP, NITRO_TPM, TPM, GO_TPM_TOOLS}

INTEL_PLATFORMS: Final = TD_PLATFORMS | {SGX}
GOOGLE_PLATFORMS: Final = frozenset({GCP_TDX, GCP_SNP, GO_TPM_TOOLS})
NO_STATUS: Final = frozenset({NITRO, NITRO_TPM, TPM, GO_TPM_TOOLS})  # no TCB status

RTMR_PLATFORMS: Final = frozenset({TDX, GCP_TDX})
"""Platforms whose guest extends the RTMRs. Behind a paravisor they are zero."""

EVENT_PLATFORMS: Final = RTMR_PLATFORMS | {NITRO_TPM}
"""Platforms whose runtime events extend a register: RTMR3, or PCR 14 of a NitroTPM."""

_NITRO_EVENTS: Final = ("sha384", EVENT_PCR)

# Debug bits in a little-endian field, by platform.
_TD_DEBUG: Final = 0xFF  # of td_attributes (TUD): any of these bits makes the TD untrusted
_SNP_DEBUG: Final = 1 << 19  # of policy
_SGX_DEBUG: Final = 1 << 1  # of attributes


def is_td(claims: Claims) -> bool:
    """Return whether evidence is of a TD, so that the rules about TDs apply."""
    return claims.platform in TD_PLATFORMS


def is_snp(claims: Claims) -> bool:
    """Return whether evidence is of an SEV-SNP guest, so that the rules about those apply."""
    return claims.platform in SNP_PLATFORMS


def measures_events(claims: Claims) -> bool:
    """Return whether the runtime events in claims replay to a register that the guest extends."""
    if claims.platform == NITRO_TPM:
        return claims.vtpm is not None and _NITRO_EVENTS in claims.vtpm.replayed
    return claims.platform in RTMR_PLATFORMS and RUNTIME_REGISTER in claims.event_registers


def is_signed_by_vlek(claims: Claims) -> bool:
    """Return whether an SEV-SNP report is signed with the key of a cloud provider."""
    return bool(int.from_bytes(claims.get("key_info") or b"", "little") >> 2 & 7)


def launch_measurement(claims: Claims) -> tuple[str, bytes | None]:
    """Return the name and value of the register that measures what the host launched.

    They are MRTD of a TD, else MEASUREMENT; the value is None if the claims have none.
    """
    if is_td(claims):
        return "MRTD", claims.get("mrtd")
    return "MEASUREMENT", claims.get("measurement")


def vlek_provider(claims: Claims) -> str:
    """Return the provider that the verified certificate of a VLEK names; else an empty string."""
    return (claims.get("vlek_provider") or b"").decode("ascii")


def refuse_debug(claims: Claims) -> None:
    """Raise PolicyError for a guest in debug mode, under every policy.

    Evidence of a TPM alone has no such mode.

    Raises:
        PolicyError: If the guest runs in debug mode, or the evidence lacks the field with it.
    """
    if claims.platform == NITRO:
        image = [claims.get(f"pcr{index}") or b"" for index in range(3)]
        if not any(b"".join(image)):
            raise _debug_error("pcr0 to pcr2", claims)
        return
    if is_td(claims):
        name, bits = "td_attributes", _TD_DEBUG
    elif is_snp(claims):
        name, bits = "policy", _SNP_DEBUG
    elif claims.platform in {NITRO_TPM, TPM, GO_TPM_TOOLS}:
        return
    else:
        name, bits = "attributes", _SGX_DEBUG
    have = claims.get(name)
    if not have or int.from_bytes(have, "little") & bits:
        raise _debug_error(name, claims)


def _debug_error(name: str, claims: Claims) -> PolicyError:
    return PolicyError(
        f"{name}: must show that the {claims.platform} guest is not in debug mode; launch it "
        "without debug",
        reason="td_debug" if is_td(claims) else "debug",
    )
