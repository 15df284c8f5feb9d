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


def _snp_simulator() -> type[Simulator]:
    from attestkit.backends.simulator.snp_simulator import SnpSimulator  # lazy: rarely needed

    return SnpSimulator


def _azure_snp_simulator() -> type[Simulator]:
    from attestkit.backends.simulator.clouds.azure import AzureSnpSimulator  # lazy: rarely needed

    return AzureSnpSimulator


def _azure_tdx_simulator() -> type[Simulator]:
    from attestkit.backends.simulator.clouds.azure import AzureTdxSimulator  # lazy: rarely needed

    return AzureTdxSimulator


Simulator.other_platforms.update(
    {
        "snp": _snp_simulator,
        "azure-snp": _azure_snp_simulator,
        "azure-tdx": _azure_tdx_simulator,
    }
)
