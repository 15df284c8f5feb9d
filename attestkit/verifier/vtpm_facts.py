"""Verified facts of a TPM's quote, and what joins the TPM with the hardware's evidence."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from attestkit.verifier.value_mapping import ValueMapping

KeyTrust = Literal["hardware_report", "certificate", "listed"]
"""What certifies the attestation key of a TPM.

`hardware_report`: an authentic hardware report commits to it (Azure). `certificate`: a certificate
under a trusted root. `listed`: only `trusted_aks` of the policy.
"""

Join = Literal["hardware_to_ak", "ak_to_hardware"]
"""Direction in which hardware evidence and TPM are joined.

`hardware_to_ak`: the hardware's evidence commits to the TPM's key. `ak_to_hardware`: the TPM signed
the hardware's evidence.
"""

BANKS: Final = ("sha256", "sha384", "sha512", "sha1")
"""Banks of PCRs in the order in which one is chosen for the registers of the claims."""

PARAVISOR_CLAIMS: Final = ("secure_boot", "console_enabled", "tpm_persisted")
"""Details that rules of a policy compare: `true` or `false`, as the paravisor reports it.

Other details from the `vm-configuration` of an HCL report (vtpm.md, section 6.3) are named like its
members, with underscores: vm_unique_id, tpm_enabled, root_cert_thumbprint.
"""

GOOGLE_CLAIMS: Final = ("gce_project", "gce_zone", "gce_instance")
"""Details that rules of a policy compare: project id, zone and instance name.

They are those of the extension 1.3.6.1.4.1.11129.2.1.21 of the key's certificate. Other details
from it are gce_project_number, gce_instance_id, gce_security_version and gce_is_production.

A NitroTPM document has module_id and, in hex where present, nonce and public_key, which a program
on the instance chose.
"""


@dataclass(frozen=True, slots=True)
class VtpmFacts(ValueMapping):
    """Verified facts of a TPM's quote; its fields are also the items of a mapping."""

    # DER SubjectPublicKeyInfo; empty where a document has the PCRs, and no key of a TPM (NitroTPM).
    attestation_key: bytes
    key_trust: KeyTrust
    joins: tuple[Join, ...]  # directions that hold; empty without hardware evidence
    pcrs: tuple[tuple[str, int, bytes], ...]  # bank (sha256, ...), index, value; as quoted
    replayed: tuple[tuple[str, int], ...] = ()  # bank and index of PCRs that a log replays to
    # Of the quote; no proof of freshness. None if the platform has no such value.
    clock_ms: int | None = None
    reset_count: int | None = None
    restart_count: int | None = None
    # By name, of paravisor or certificate: see PARAVISOR_CLAIMS and GOOGLE_CLAIMS.
    details: tuple[tuple[str, str], ...] = ()

    def pcr(self, bank: str, index: int) -> bytes | None:
        """Return the value of a PCR; None if it is not quoted."""
        return next((value for *name, value in self.pcrs if name == [bank, index]), None)

    def registers(self) -> tuple[tuple[str, bytes], ...]:
        """Return the PCRs as registers of claims, pcr0 ..., of the first quoted bank of `BANKS`."""
        return _registers(self.pcrs)

    def to_dict(self) -> dict[str, object]:
        """Return values for JSON, with bytes in hex."""
        return {
            "attestation_key": self.attestation_key.hex(),
            "key_trust": self.key_trust,
            "joins": list(self.joins),
            "pcrs": {f"{bank}:{index}": value.hex() for bank, index, value in self.pcrs},
            "replayed": [f"{bank}:{index}" for bank, index in self.replayed],
            "clock_ms": self.clock_ms,
            "reset_count": self.reset_count,
            "restart_count": self.restart_count,
            "details": dict(self.details),
        }


@lru_cache(maxsize=64)  # a machine's PCRs seldom change after its boot
def _registers(pcrs: tuple[tuple[str, int, bytes], ...]) -> tuple[tuple[str, bytes], ...]:
    quoted = {bank for bank, _, _ in pcrs}
    chosen = next((bank for bank in BANKS if bank in quoted), None)
    found = sorted((index, value) for bank, index, value in pcrs if bank == chosen)
    return tuple((f"pcr{index}", value) for index, value in found)
