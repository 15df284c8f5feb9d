"""Azure's confidential VMs: SEV-SNP or TDX behind a paravisor, which provides a TPM.

The hardware report comes from an NV index of the TPM, its certificates or quote from Azure's
metadata service.
"""

from attestkit.backends.azure.backend import AzureBackend
from attestkit.backends.azure.imds import ImdsClient

__all__ = ["AzureBackend", "ImdsClient"]
