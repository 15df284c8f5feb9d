"""Readers of GPU evidence as other systems send it, beside evidence of a CPU (nvidia-gpu.md, 6).

Each returns a `GpuBinding`, for `Verifier.verify(evidence, gpu=binding)`. The nonce is always the
caller's own; a nonce in the answer is not used.
"""

from attestkit.gpu.bindings.chutes import read_chutes
from attestkit.gpu.bindings.coco import read_coco
from attestkit.gpu.bindings.secretvm import read_secretvm
from attestkit.gpu.bindings.tinfoil import read_tinfoil
from attestkit.gpu.bindings.vllm_proxy import read_vllm_proxy

__all__ = ["read_chutes", "read_coco", "read_secretvm", "read_tinfoil", "read_vllm_proxy"]
