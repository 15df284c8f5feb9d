"""Simulated machines with their endorsements, for tests of the verification."""

from datetime import datetime, timezone
from functools import cache
from typing import Any, Final

from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.gpu.evidence import GpuEvidence
from attestkit.gpu.result import GpuResult
from attestkit.gpu.verification import verify

NOW: Final = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)
NONCE: Final = bytes(range(32))
SEED: Final = b"\x27" * 32


@cache
def machine(count: int | None = None, fault: str | None = None) -> SimulatedGpus:
    """Return a machine; 8 GPUs come with 4 switches."""
    return SimulatedGpus(SEED, GpuConfig(count, fault=fault))


@cache
def endorsements(gpus: SimulatedGpus) -> GpuEndorsements:
    """Return the endorsements of a machine at `NOW`."""
    return GpuEndorsements(dict(gpus.rims), gpus.ocsp_answers(NOW.timestamp()))


def verify_machine(
    gpus: SimulatedGpus, evidence: GpuEvidence | bytes | None = None, **options: Any
) -> GpuResult:
    """Verify evidence of a machine at `NOW`, by its own roots and endorsements."""
    given = {
        "nonce": NONCE,
        "now": NOW,
        "endorsements": endorsements(gpus),
        "roots": gpus.roots,
        **options,
    }
    return verify(gpus.evidence(NONCE) if evidence is None else evidence, **given)
