"""Policies: what is accepted of evidence that is true, as values and as TOML files.

`AppraisalPolicy` has the rules, and says all that it does not accept.
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
        checked_policy,
        name_of,
    )

__all__ = [
    "PRESETS",
    "VERIFIED_PLATFORMS",
    "AppraisalPolicy",
    "BitMask",
    "KeyProvider",
    "ReferenceValues",
    "RequiredEvent",
    "checked_policy",
    "name_of",
]

# Name: the module that has it, loaded once it is asked for.
_HOME = {
    "PRESETS": "appraisal_policy",
    "VERIFIED_PLATFORMS": "appraisal_policy",
    "AppraisalPolicy": "appraisal_policy",
    "BitMask": "appraisal_policy",
    "KeyProvider": "appraisal_policy",
    "ReferenceValues": "appraisal_policy",
    "RequiredEvent": "appraisal_policy",
    "checked_policy": "appraisal_policy",
    "name_of": "appraisal_policy",
}


if not TYPE_CHECKING:  # to whom every name would be there

    def __getattr__(name: str) -> object:
        """Load what is asked for, once."""
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
