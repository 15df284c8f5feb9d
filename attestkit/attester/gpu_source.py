"""Evidence of the GPUs of the machine that an Attester runs on."""

from typing import TYPE_CHECKING

from attestkit.backends.base import Backend, GpuCollector
from attestkit.errors import UnsupportedError

if TYPE_CHECKING:
    from attestkit.gpu.evidence import GpuEvidence


def collect_gpu_evidence(backend: Backend, nonce: bytes) -> "GpuEvidence":
    """Return evidence of all GPUs and switches over a nonce of 32 bytes.

    It is requested from the backend if that has GPUs of its own, else from NVIDIA's driver.

    Issues a `GpuModeWarning` if the driver's GPUs are in a mode without protection.

    Raises:
        UnsupportedError: If the backend is a simulator without GPUs.
        BackendError: If the driver is missing, or returns an error or malformed evidence.
    """
    if isinstance(backend, GpuCollector):
        return backend.gpu_evidence(nonce)
    if backend.simulated:
        message = f"GPUs: the backend {backend.name} has none; open the simulator with gpus=1"
        raise UnsupportedError(message, reason="feature")
    from attestkit.gpu import collect  # lazy: loads NVIDIA's library

    return collect(nonce)
