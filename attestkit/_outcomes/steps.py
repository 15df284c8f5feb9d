"""Steps of a verification: what was checked, with which outcome; and the reasons about GPUs.

The name of a check is stable: programs compare it, while a text may change.
"""

from typing import Literal, NamedTuple

GpuReason = Literal[
    # Checks of a device, in their order
    "format",
    "device_chain",
    "device_key",
    "fwid",
    "report_signature",
    "nonce",
    "device_ocsp",
    "driver_rim_format",
    "driver_rim_chain",
    "driver_rim_signature",
    "driver_rim_identity",
    "driver_rim_ocsp",
    "vbios_rim_format",
    "vbios_rim_chain",
    "vbios_rim_signature",
    "vbios_rim_identity",
    "vbios_rim_ocsp",
    "measurements",
    "modes",
    "topology",
    "binding",  # the CPU's evidence does not commit to that of the GPUs as required
    # Rules of a policy
    "chip",
    "device_count",
    "driver_version",
    "vbios_version",
    # Tokens of NVIDIA's remote attestation service
    "nras_key",
    "nras_signature",
    "nras_time",
    "nras_nonce",
    "nras_digest",
    "nras_result",
]
"""Evidence of GPUs fails verification."""

GpuStepCheck = Literal[
    "gpu_report",  # certificates, keys, signature and nonce of the devices' reports
    "gpu_revocation",  # of the certificates of devices and of reference manifests
    "gpu_rim",  # signatures and identities of the reference manifests
    "gpu_measurements",
    "gpu_topology",
    "gpu_nras",  # tokens of NVIDIA's remote attestation service
    "gpu_rules",  # of the policy, about GPUs
    "gpu_binding",  # what joins the CPU's evidence and that of the GPUs
]
"""Checks of steps that are about GPUs."""


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
    """A step of a verification that did not reject the evidence: check, outcome, and a sentence."""

    check: StepCheck
    outcome: StepOutcome
    text: str  # one sentence; its wording may change

    def __str__(self) -> str:
        return f"caution: {self.text}" if self.outcome == "caution" else self.text


def passed(check: StepCheck, text: str) -> VerificationStep:
    """Return the step of a check that passed; `text` says in a sentence what was found."""
    return VerificationStep(check, "passed", text)


def skipped(check: StepCheck, text: str) -> VerificationStep:
    """Return the step of a check that was skipped; `text` says in a sentence why."""
    return VerificationStep(check, "skipped", text)


def caution(check: StepCheck, text: str) -> VerificationStep:
    """Return the step of a check that passed with a caution, which the sentence `text` states."""
    return VerificationStep(check, "caution", text)
