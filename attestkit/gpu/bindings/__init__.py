"""Readers of GPU evidence that other systems send together with CPU evidence.

Each returns a `GpuBinding`, for `Verifier.verify(evidence, gpu=binding)`: the GPU evidence, its
nonce, and the report data of the CPU evidence that refers to it. The nonce is always the caller's
own; a nonce in the answer is not used.
"""

from attestkit.gpu.bindings.answer_formats import (
    read_chutes,
    read_coco,
    read_secretvm,
    read_vllm_proxy,
)
from attestkit.gpu.bindings.tinfoil import read_tinfoil

__all__ = ["read_chutes", "read_coco", "read_secretvm", "read_tinfoil", "read_vllm_proxy"]
