"""Appraisal policies: rules for authentic evidence, as objects and as TOML files.

`AppraisalPolicy` has the rules. The error for rejected evidence names the first unmet rule.
"""

from attestkit.verifier.policy.appraisal_policy import (
    PRESETS,
    VERIFIED_PLATFORMS,
    AppraisalPolicy,
    BitMask,
    KeyProvider,
    ReferenceValues,
    RequiredEvent,
    policy_name,
    require_policy,
)

__all__ = [
    "PRESETS",
    "VERIFIED_PLATFORMS",
    "AppraisalPolicy",
    "BitMask",
    "KeyProvider",
    "ReferenceValues",
    "RequiredEvent",
    "policy_name",
    "require_policy",
]
