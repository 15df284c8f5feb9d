"""The native core in plain Python: the fallback without a compiler, and the oracle in tests.

One file per subject, as in C; this one puts them together.
"""

from attestkit._native._python_cpu import cpuid
from attestkit._native._python_log import (
    ccel_walk,
    replay,
    replay_many,
    sha384,
    sha384_many,
    tpm_walk,
)
from attestkit._native._python_quote import quote_layout, quote_padding

__all__ = [
    "ccel_walk",
    "cpuid",
    "quote_layout",
    "quote_padding",
    "replay",
    "replay_many",
    "sha384",
    "sha384_many",
    "tpm_walk",
]
