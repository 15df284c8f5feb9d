"""Evidence of NVIDIA GPUs and switches: its formats, and its verification.

Names are loaded when they are used.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.gpu.collection import (
        GpuCollection,
        GpuModeWarning,
        collect,
        collect_with_state,
        read_state,
        set_ready,
    )
    from attestkit.gpu.device.report import Report
    from attestkit.gpu.driver.nvml import ConfComputeState, GpuDescription
    from attestkit.gpu.endorsement_fetcher import GpuServices
    from attestkit.gpu.endorsements import GpuEndorsements
    from attestkit.gpu.evidence import DeviceEvidence, GpuBinding, GpuEvidence
    from attestkit.gpu.result import DeviceResult, GpuResult
    from attestkit.gpu.rim.manifest import Rim
    from attestkit.gpu.roots import GpuRoots
    from attestkit.gpu.rules import GpuRules
    from attestkit.gpu.verification import verify
else:
    # Lazy: most programs verify no GPUs.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "collection": [
                *("GpuCollection", "GpuModeWarning", "collect", "collect_with_state"),
                *("read_state", "set_ready"),
            ],
            "endorsement_fetcher": ["GpuServices"],
            "endorsements": ["GpuEndorsements"],
            "evidence": ["DeviceEvidence", "GpuBinding", "GpuEvidence"],
            "driver.nvml": ["ConfComputeState", "GpuDescription"],
            "device.report": ["Report"],
            "result": ["DeviceResult", "GpuResult"],
            "rim.manifest": ["Rim"],
            "roots": ["GpuRoots"],
            "rules": ["GpuRules"],
            "verification": ["verify"],
        },
    )

__all__ = [
    "ConfComputeState",
    "DeviceEvidence",
    "DeviceResult",
    "GpuBinding",
    "GpuCollection",
    "GpuDescription",
    "GpuEndorsements",
    "GpuEvidence",
    "GpuModeWarning",
    "GpuResult",
    "GpuRoots",
    "GpuRules",
    "GpuServices",
    "Report",
    "Rim",
    "collect",
    "collect_with_state",
    "read_state",
    "set_ready",
    "verify",
]
