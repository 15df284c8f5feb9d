"""NVIDIA's remote attestation service (NRAS): its requests, keys, tokens and claims.

Its tokens replace the local verification of GPU evidence, or are verified in addition to it.
"""

from attestkit.gpu.nras.claims import CertificateClaims, DeviceClaims, RimClaims
from attestkit.gpu.nras.client import NVIDIA_NRAS_URL, fetch_keys, request_tokens
from attestkit.gpu.nras.detached_eat import DetachedEat, read_detached_eat
from attestkit.gpu.nras.nvattest_output import NvattestOutput, read_nvattest_output
from attestkit.gpu.nras.tokens import NRAS_ISSUER, NrasResult, read_jwks, verify_tokens

__all__ = [
    "NRAS_ISSUER",
    "NVIDIA_NRAS_URL",
    "CertificateClaims",
    "DetachedEat",
    "DeviceClaims",
    "NrasResult",
    "NvattestOutput",
    "RimClaims",
    "fetch_keys",
    "read_detached_eat",
    "read_jwks",
    "read_nvattest_output",
    "request_tokens",
    "verify_tokens",
]
