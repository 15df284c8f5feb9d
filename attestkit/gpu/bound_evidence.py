"""GPU evidence with what it must have in common with the evidence of a CPU (section 6)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from attestkit._argument_checks import require_size
from attestkit.gpu.evidence import GpuEvidence

BindingKind = Literal["nonce", "report_data"]
"""`report_data`: they commit to the GPU evidence. `nonce`: only the nonce, or a hash of it, is
shared."""


@dataclass(frozen=True, slots=True)
class GpuBinding:
    """GPU evidence of another system, as a reader of `attestkit.gpu.bindings` returns it.

    Pass it to `Verifier.verify` as `gpu`, without `nonce` and `report_data`.
    """

    system: str  # such as vllm-proxy
    kind: BindingKind
    evidence: GpuEvidence
    nonce: bytes = field(repr=False)  # of the verifier
    gpu_nonce: bytes = field(repr=False)  # that the reports of the GPUs must have, 32 bytes
    report_data: bytes = field(repr=False)  # that the CPU's evidence must have, 64 bytes
    # Other values that the report data commit to, by name: addresses and keys.
    committed: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_size("gpu_nonce", self.gpu_nonce, 32)
        require_size("report_data", self.report_data, 64)
