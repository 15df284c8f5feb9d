"""Simulated Azure confidential VMs: a paravisor with a TPM, and the metadata service."""

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import cached_property
from typing import Final

from attestkit._crypto.hashes import sha384
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.cloud_certificates import CloudAuthority, certificate_subject
from attestkit.attestation.wire.evidence_parts import Platform
from attestkit.backends.azure import Azure
from attestkit.backends.azure.imds import ImdsClient
from attestkit.backends.simulator.clouds.cloud_simulator import CloudSimulator
from attestkit.backends.simulator.clouds.firmware_log import boot_application, uefi_records
from attestkit.backends.simulator.clouds.imds import ImdsResponse, ImdsServer, SimulatedImds
from attestkit.backends.simulator.clouds.paravisor import (
    SNP_REPORT,
    TDX_REPORT,
    ParavisorConfig,
    RsaNumbers,
    bound_report_data,
    make_hcl_report,
    make_runtime_data,
)
from attestkit.backends.simulator.clouds.vtpm import OWNER_READ
from attestkit.backends.simulator.pki.amd_chip import SimulatedChip, issue_chip
from attestkit.backends.simulator.pki.azure_ca import AzureCa
from attestkit.backends.simulator.pki.cloud_root import CloudRoot
from attestkit.backends.simulator.pki.intel_pki import derive
from attestkit.backends.simulator.platform_identity import issue_platform
from attestkit.backends.simulator.software_tpm import TpmHooks, VirtualIndex
from attestkit.backends.simulator.td_reports import EmulatedTd, ReportQuoter
from attestkit.collateral import Collateral
from attestkit.errors import UnsupportedError
from attestkit.tpm import TpmtPublic
from attestkit.tpm.public_area import ENDORSEMENT

PARAVISOR_SNP: Final = sha384(b"attestkit simulated paravisor, SEV-SNP")
"""MEASUREMENT of the simulated paravisor."""

PARAVISOR_TDX: Final = sha384(b"attestkit simulated paravisor, TDX")
"""MRTD of the simulated paravisor."""

_HCL_INDEX: Final = 0x01400001
_HCL_SIZE: Final = 2600
_USER_DATA_INDEX: Final = 0x01400002
_AK_CERTIFICATE_INDEX: Final = 0x01C101D0
_AK_CERTIFICATE_SIZE: Final = 4096
_AK_HANDLE: Final = 0x81000003
