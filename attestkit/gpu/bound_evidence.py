"""GPU evidence with what it must have in common with the evidence of a CPU (section 6)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from attestkit._argument_checks import require_size
from attestkit.errors import UsageError
from attestkit.gpu.evidence import GpuEvidence
from attestkit.gpu.result import GpuBindingKind


@dataclass(frozen=True, slots=True)
class GpuBinding:
    """GPU evidence of another system, as a reader of `attestkit.gpu.bindings` returns it.

    Pass it to `Verifier.verify` as `gpu`, without `nonce` and `report_data`.

    Raises:
        UsageError: If a value has the wrong size, or `kind` is one of an event log.
    """

    system: str  # such as vllm-proxy
    kind: GpuBindingKind  # `nonce` or `report_data`
    evidence: GpuEvidence
    nonce: bytes = field(repr=False)  # of the verifier
    gpu_nonce: bytes = field(repr=False)  # that the reports of the GPUs must have, 32 bytes
    report_data: bytes = field(repr=False)  # that the CPU's evidence must have, 64 bytes
    # Other values that the report data commit to, by name: addresses and keys.
    committed: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_size("gpu_nonce", self.gpu_nonce, 32)
        require_size("report_data", self.report_data, 64)
        if self.kind not in ("nonce", "report_data"):
            raise UsageError("kind: must be nonce or report_data", reason="wrong_value")
