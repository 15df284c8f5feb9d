"""GPU part of the closed lists: reasons of errors, and checks of verification steps."""

from typing import Literal

GpuReason = Literal[
    # Checks of a device, in their order (nvidia-gpu.md, section 8)
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
