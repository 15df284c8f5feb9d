"""Simulated TEE: a TD or an SEV-SNP guest, with boot log, signed evidence, an app and its keys.

Its evidence chains to a root of its own, which no verifier trusts by default; `simulated` is true,
and it is never selected automatically.
"""

from attestkit.backends.simulator.boot_files import BootFiles
from attestkit.backends.simulator.tdx_simulator import Simulator

__all__ = ["BootFiles", "Simulator"]


def _snp_simulator() -> type[Simulator]:
    from attestkit.backends.simulator.snp_simulator import SnpSimulator  # lazy: rarely needed

    return SnpSimulator


Simulator.other_platforms["snp"] = _snp_simulator
