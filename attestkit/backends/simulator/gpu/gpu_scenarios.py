"""Named scenarios of machines with GPUs: each fault of GPUs, as `gpu-` and its name."""

from typing import Final

from attestkit.backends.simulator.gpu.gpu_faults import GPU_FAULTS
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.backends.simulator.scenarios.named import GPU_PREFIX
from attestkit.backends.simulator.scenarios.named_scenario import NamedScenario

GPU_SCENARIOS: Final[dict[str, NamedScenario]] = {
    f"{GPU_PREFIX}{name}": NamedScenario(
        Scenario(gpu_fault=name), fault.check or "UpToDate", fault.text
    )
    for name, fault in GPU_FAULTS.items()
}
"""Scenarios by name; the outcome is that of a strict verifier of CPU and GPUs."""


def named_gpu_scenarios() -> tuple[str, ...]:
    """Return one line of help for each scenario."""
    width = max(map(len, GPU_SCENARIOS))
    return tuple([f"{name:<{width}}  {named.text}" for name, named in GPU_SCENARIOS.items()])
