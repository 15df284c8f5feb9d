"""A software TEE: a TD, or an SEV-SNP guest, with a boot log, signed evidence, an app and its keys.

It is never silent: it signs with a root of its own that no verifier trusts unless told to,
`simulated` is true, and nobody picks it without naming it.
"""

from attestkit.backends.simulator.tdx_simulator import Simulator

__all__ = ["Simulator"]


def _snp_simulator() -> type[Simulator]:
    from attestkit.backends.simulator.snp_simulator import SnpSimulator  # late: few want one

    return SnpSimulator


Simulator.other_platforms["snp"] = _snp_simulator
