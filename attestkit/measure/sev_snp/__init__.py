"""Launch digests of SEV-SNP guests, computed from firmware, kernel and the VMM's conventions."""

from attestkit.measure.sev_snp.launch_digest import (
    KernelFiles,
    KernelHashes,
    SnpMachine,
    compute_launch_digest,
    firmware_digest,
    launch_digest_basis,
    svsm_launch_digest,
)
from attestkit.measure.sev_snp.sev_metadata import SevMetadata, read_sev_metadata
from attestkit.measure.sev_snp.vcpu import Vmm, find_cpu_signature, initial_vmsa

__all__ = [
    "KernelFiles",
    "KernelHashes",
    "SevMetadata",
    "SnpMachine",
    "Vmm",
    "compute_launch_digest",
    "find_cpu_signature",
    "firmware_digest",
    "initial_vmsa",
    "launch_digest_basis",
    "read_sev_metadata",
    "svsm_launch_digest",
]
