"""Evidence of NVIDIA GPUs and switches: its formats, and its verification.

Names are loaded when they are used.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.gpu.collection import collect
    from attestkit.gpu.endorsement_fetcher import GpuServices
    from attestkit.gpu.endorsements import GpuEndorsements
    from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence
    from attestkit.gpu.report import Report
    from attestkit.gpu.rim import Rim
    from attestkit.gpu.roots import GpuRoots
else:
    # Lazy: most programs verify no GPUs.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "collection": ["collect"],
            "endorsement_fetcher": ["GpuServices"],
            "endorsements": ["GpuEndorsements"],
            "evidence": ["DeviceEvidence", "GpuEvidence"],
            "report": ["Report"],
            "rim": ["Rim"],
            "roots": ["GpuRoots"],
        },
    )

__all__ = [
    "DeviceEvidence",
    "GpuEndorsements",
    "GpuEvidence",
    "GpuRoots",
    "GpuServices",
    "Report",
    "collect",
]
