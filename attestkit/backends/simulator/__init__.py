"""Simulated TEE: a TD or an SEV-SNP guest, with boot log, signed evidence, an app and its keys.

Its evidence chains to a root of its own, which no verifier trusts by default; `simulated` is true,
and it is never selected automatically.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names
from attestkit.backends.simulator.tdx import Simulator

if TYPE_CHECKING:
    from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
    from attestkit.backends.simulator.images.image_documents import BootFiles
    from attestkit.backends.simulator.roots import simulated_roots

__all__ = ["BootFiles", "GpuConfig", "Simulator", "simulated_roots"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "images.image_documents": ["BootFiles"],
            "gpu.gpu_config": ["GpuConfig"],
            "roots": ["simulated_roots"],
        },
    )
