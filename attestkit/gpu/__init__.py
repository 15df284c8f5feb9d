"""Evidence of NVIDIA GPUs and switches: its formats, and its verification.

Names are loaded when they are used.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.gpu.collection import (
        GpuCollection,
        collect,
        collect_with_state,
        read_state,
        set_ready,
    )
    from attestkit.gpu.device.report import Report
    from attestkit.gpu.driver.nvml import ConfComputeState, GpuDescription
    from attestkit.gpu.endorsement_fetcher import GpuServices
    from attestkit.gpu.endorsements import GpuEndorsements
    from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence
    from attestkit.gpu.result import DeviceResult, GpuResult
    from attestkit.gpu.rim import Rim
    from attestkit.gpu.roots import GpuRoots
else:
    # Lazy: most programs verify no GPUs.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "collection": [
                *("GpuCollection", "collect", "collect_with_state", "read_state", "set_ready"),
            ],
            "evidence": ["DeviceEvidence", "GpuEvidence"],
            "driver.nvml": ["ConfComputeState", "GpuDescription"],
            "device.report": ["Report"],
            "result": ["DeviceResult", "GpuResult"],
            "rim": ["Rim"],
            "roots": ["GpuRoots"],
        },
    )

__all__ = [
    "ConfComputeState",
    "DeviceEvidence",
    "GpuCollection",
    "GpuDescription",
    "GpuEvidence",
    "GpuRoots",
    "Report",
    "Rim",
    "collect",
    "collect_with_state",
    "read_state",
    "set_ready",
]
