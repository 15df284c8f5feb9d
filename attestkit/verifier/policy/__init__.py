"""Appraisal policies: rules for authentic evidence, as values and as TOML files.

`AppraisalPolicy` has the rules and lists every one that the evidence breaks.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

# Public name: its module, imported on first use.
_HOME = {
    "PRESETS": "appraisal_policy",
    "VERIFIED_PLATFORMS": "appraisal_policy",
    "AppraisalPolicy": "appraisal_policy",
    "BitMask": "appraisal_policy",
    "KeyProvider": "appraisal_policy",
    "ReferenceValues": "appraisal_policy",
    "RequiredEvent": "appraisal_policy",
    "policy_name": "appraisal_policy",
    "require_policy": "appraisal_policy",
}


if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> object:
        """Import a public name on first use."""
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
