"""Simulated TEE: a TD or an SEV-SNP guest, with boot log, signed evidence, an app and its keys.

Its evidence chains to a root of its own, which no verifier trusts by default; `simulated` is true,
and it is never selected automatically.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names
from attestkit.backends.simulator.tdx_simulator import Simulator

if TYPE_CHECKING:
    from attestkit.backends.simulator.boot_files import BootFiles

__all__ = ["BootFiles", "Simulator"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, {"boot_files": ["BootFiles"]})

# The classes of other platforms are imported when one is opened.


def _snp() -> type[Simulator]:
    from attestkit.backends.simulator.snp_simulator import SnpSimulator

    return SnpSimulator


def _aws_snp() -> type[Simulator]:
    from attestkit.backends.simulator.clouds.aws_snp import AwsSnpSimulator

    return AwsSnpSimulator


def _azure_snp() -> type[Simulator]:
    from attestkit.backends.simulator.clouds.azure import AzureSnpSimulator

    return AzureSnpSimulator


def _azure_tdx() -> type[Simulator]:
    from attestkit.backends.simulator.clouds.azure import AzureTdxSimulator

    return AzureTdxSimulator


def _gcp_snp() -> type[Simulator]:
    from attestkit.backends.simulator.clouds.gcp import GcpSnpSimulator

    return GcpSnpSimulator


def _gcp_tdx() -> type[Simulator]:
    from attestkit.backends.simulator.clouds.gcp import GcpTdSimulator

    return GcpTdSimulator


def _nitro_tpm() -> type[Simulator]:
    from attestkit.backends.simulator.clouds.nitro_tpm import NitroTpmSimulator

    return NitroTpmSimulator


def _tpm() -> type[Simulator]:
    from attestkit.backends.simulator.clouds.tpm import TpmSimulator

    return TpmSimulator


Simulator.other_platforms.update(
    {
        "snp": _snp,
        "aws-snp": _aws_snp,
        "azure-snp": _azure_snp,
        "azure-tdx": _azure_tdx,
        "gcp-snp": _gcp_snp,
        "gcp-tdx": _gcp_tdx,
        "aws-nitro-tpm": _nitro_tpm,
        "tpm": _tpm,
    }
)
