"""Steps of a verification: what was checked, with which outcome.

The name of a check is stable: programs compare it, while a text may change.
"""

from typing import Literal, NamedTuple

from attestkit._gpu_reasons import GpuStepCheck

StepOutcome = Literal["passed", "skipped", "caution"]
"""`skipped`: not checked. `caution`: checked, with a result that needs attention."""

StepCheck = Literal[
    # Signatures
    "certificates",  # the path from the signing key to the trust anchor
    "revocation",
    "collateral",
    "quoting_enclave",
    "signature",  # of quote, report or document
    "chip",  # that the certificate is of the chip in the report
    "guest_policy",
    "host_data",
    "timestamp",
    "debug",
    "tcb",
    # Content
    "verification_time",
    "report_data",
    "event_log",
    "os_image",
    "app",
    "mr_config",  # the configuration sealed at launch
    "certificate_key",  # possession of the key of an RA-TLS certificate
    # vTPM
    "hcl_report",  # form of the HCL report, and the hardware report over its runtime data
    "attestation_key",  # what certifies the key of the TPM
    "ak_certificate",
    "ak_revocation",  # of the certificates of the TPM's key
    "tpm_quote",  # signature, selection and PCR values of the TPM's quote
    "tpm_clock",
    "hardware_to_ak",  # the hardware's evidence commits to the TPM's key
    "ak_to_hardware",  # the TPM signed the hardware's evidence
    "pcr_log",  # replay of the firmware's log to PCRs
    "ima_log",
    "user_data",  # the paravisor received the report data
    "paravisor",  # identity of the paravisor
    "instance",  # cloud instance named by a certificate
    "unknown_fields",  # of a message, which were ignored
    GpuStepCheck,
    # Rules of the policy
    "platform",
    "simulated",
    "tcb_status",
    "advisory",
    "evaluation_data_number",
    "minimum_svn",
    "reference_value",
    "attributes",
    "sev_features",
    "vcpus",
    "vcpu_type",
    "minimum_version",
    "provisional_firmware",
    "os_image_hash",
    "app_id",
    "compose_hash",
    "instance_id",
    "key_provider",
    "device_id",
    "mr_aggregated",
    "mr_system",
    "dynamic_platform",
    "cached_keys",
    "smt",
    "required_event",
    "acpi_tables",
    "smbios",
    "pcrs",
    "trusted_aks",
    "require_joins",
    "paravisor_measurement",
    "id_key_digest",
    "secure_boot",
    "console_enabled",
    "tpm_persisted",
    "init_data",
    "gce_project",
    "gce_zone",
    "gce_instance",
    "vlek_providers",
    "policy",
]
"""The check of a step. A rule of the policy has the reason of its PolicyError."""


class VerificationStep(NamedTuple):
    """A step of a verification that did not reject the evidence."""

    check: StepCheck
    outcome: StepOutcome
    text: str  # one sentence; its wording may change

    def __str__(self) -> str:
        return f"caution: {self.text}" if self.outcome == "caution" else self.text
