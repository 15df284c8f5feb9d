"""Named scenarios of guests behind a vTPM (vtpm.md, sections 6 to 10)."""

from datetime import timedelta
from typing import Any, Final

from attestkit.backends.simulator.scenarios.config import CloudConfig, Scenario
from attestkit.backends.simulator.scenarios.named_scenario import NO_STATUS, NamedScenario


def _cloud(platform: str, outcome: str, text: str, **fields: Any) -> NamedScenario:
    return NamedScenario(Scenario(platform, cloud=CloudConfig(**fields)), outcome, text)


CLOUDS: Final[dict[str, NamedScenario]] = {
    "azure-snp": _cloud(
        "azure-snp",
        "UpToDate",
        "an Azure VM on SEV-SNP: HCL report, TPM quote, VCEK of the metadata service",
    ),
    "azure-snp-wrong-binding": _cloud(
        "azure-snp",
        "hcl_binding",
        "the SEV-SNP report is not over the paravisor's runtime data",
        bound=False,
    ),
    "azure-snp-foreign-ak": _cloud(
        "azure-snp",
        "tpm_quote_bad_signature",
        "the runtime data have the attestation key of another TPM",
        foreign_ak=True,
    ),
    "azure-snp-vmpl-2": _cloud(
        "azure-snp",
        "vmpl",
        "the SEV-SNP report was requested at VMPL 2, by the guest itself",
        vmpl=2,
    ),
    "azure-snp-vmpl-3": _cloud(
        "azure-snp",
        "vmpl",
        "the SEV-SNP report was requested at VMPL 3, by the guest itself",
        vmpl=3,
    ),
    "azure-snp-stale-nonce": _cloud(
        "azure-snp",
        "report_data_mismatch",
        "TPM quote and user data are those of an earlier request",
        stale_nonce=True,
    ),
    "azure-snp-grub": _cloud(
        "azure-snp",
        "UpToDate",
        "shim and GRUB start the kernel, and measure into PCRs 8 and 14, too",
        loader="grub",
    ),
    "azure-snp-wrong-bank": _cloud(
        "azure-snp",
        "pcr_selection",
        "the TPM quote selects the SHA-384 bank",
        bank="sha384",
    ),
    "azure-tdx": _cloud(
        "azure-tdx",
        "UpToDate",
        "an Azure VM on TDX: HCL report, TPM quote, TD quote of the metadata service",
    ),
    "azure-tdx-wrong-binding": _cloud(
        "azure-tdx",
        "hcl_binding",
        "the TD report is not over the paravisor's runtime data",
        bound=False,
    ),
    "azure-tdx-foreign-ak": _cloud(
        "azure-tdx",
        "tpm_quote_bad_signature",
        "the runtime data have the attestation key of another TPM",
        foreign_ak=True,
    ),
    "azure-tdx-stale-nonce": _cloud(
        "azure-tdx",
        "report_data_mismatch",
        "TPM quote and user data are those of an earlier request",
        stale_nonce=True,
    ),
    "azure-tdx-wrong-bank": _cloud(
        "azure-tdx",
        "pcr_selection",
        "the TPM quote selects the SHA-384 bank",
        bank="sha384",
    ),
    "gcp-tdx": _cloud(
        "gcp-tdx",
        "UpToDate",
        "a Google VM on TDX, whose vTPM signs the TD quote",
    ),
    "gcp-tdx-relayed-quote": _cloud(
        "gcp-tdx",
        "report_data",
        "the TD quote is of another machine, and commits to that machine's vTPM",
        relayed=True,
    ),
    "gcp-tdx-foreign-ak": _cloud(
        "gcp-tdx",
        "tpm_quote_bad_signature",
        "the certificate is that of another vTPM's attestation key",
        foreign_ak=True,
    ),
    "gcp-tdx-stale-nonce": _cloud(
        "gcp-tdx",
        "report_data",
        "TD quote and TPM quote are those of an earlier request",
        stale_nonce=True,
    ),
    "gcp-tdx-grub": _cloud(
        "gcp-tdx",
        "UpToDate",
        "shim measures its keys into PCR 14, before the events of the app",
        loader="grub",
    ),
    "gcp-tdx-intermediate": _cloud(
        "gcp-tdx",
        "missing",
        "an intermediate CA issues the certificate of the vTPM's key, and the verifier has none",
        intermediate=True,
    ),
    "gcp-tdx-wrong-bank": _cloud(
        "gcp-tdx",
        "pcr_selection",
        "the vTPM's quote selects the SHA-384 bank",
        bank="sha384",
    ),
    "gcp-snp": _cloud(
        "gcp-snp",
        "UpToDate",
        "a Google VM on SEV-SNP, whose vTPM signs the report",
    ),
    "gcp-snp-relayed-report": _cloud(
        "gcp-snp",
        "report_data",
        "the report is of another machine, and commits to that machine's vTPM",
        relayed=True,
    ),
    "gcp-snp-stale-nonce": _cloud(
        "gcp-snp",
        "report_data_mismatch",
        "report and TPM quote are those of an earlier request",
        stale_nonce=True,
    ),
    "gcp-snp-grub": _cloud(
        "gcp-snp",
        "UpToDate",
        "shim and GRUB start the kernel, and measure into PCRs 8 and 14, too",
        loader="grub",
    ),
    "gcp-snp-foreign-ak": _cloud(
        "gcp-snp",
        "tpm_quote_bad_signature",
        "the certificate is that of another vTPM's attestation key",
        foreign_ak=True,
    ),
    "aws-snp": _cloud(
        "aws-snp",
        "vlek_providers",
        "an EC2 instance on SEV-SNP, whose reports the provider's key signs",
    ),
    "aws-nitro-tpm": _cloud(
        "aws-nitro-tpm",
        NO_STATUS,
        "an EC2 instance with a NitroTPM, whose hypervisor signs the PCRs",
    ),
    "aws-nitro-tpm-stale-nonce": _cloud(
        "aws-nitro-tpm",
        "report_data_mismatch",
        "the document is over the report data of an earlier request",
        stale_nonce=True,
    ),
    "aws-nitro-tpm-grub": _cloud(
        "aws-nitro-tpm",
        NO_STATUS,
        "shim measures its keys into PCR 14, so that it has no events of an app",
        loader="grub",
    ),
    "aws-nitro-tpm-old": _cloud(
        "aws-nitro-tpm",
        "document_expired",
        "the document was made two hours ago",
        document_age=timedelta(hours=2),
    ),
    "aws-nitro-tpm-expired": _cloud(
        "aws-nitro-tpm",
        "cert_expired",
        "the document's certificates expired yesterday",
        certificate_age=timedelta(days=2),
    ),
    "tpm": _cloud(
        "tpm",
        NO_STATUS,
        "a machine with a TPM, whose attestation key has a certificate",
    ),
    "tpm-grub": _cloud(
        "tpm",
        NO_STATUS,
        "shim and GRUB start the kernel, and measure into PCRs 8 and 14, too",
        loader="grub",
    ),
    "tpm-foreign-ak": _cloud(
        "tpm",
        "tpm_quote_bad_signature",
        "the attestation key in the evidence is that of another TPM",
        foreign_ak=True,
    ),
    "tpm-stale-nonce": _cloud(
        "tpm",
        "report_data_mismatch",
        "the TPM quote is over the report data of an earlier request",
        stale_nonce=True,
    ),
}
"""Scenarios by name; the outcome is that of a strict verifier whose policy names the platform."""
