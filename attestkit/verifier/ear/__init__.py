"""Attestation results as signed tokens (EAR), in JWT or COSE: claims, keys, and envelope.

`sign_ear` signs a result; `verify_ear` verifies a token.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attestkit.verifier.ear.result_token import (
        LEEWAY,
        LIFETIME,
        MAX_TOKEN,
        PROFILE,
        Ear,
        EarKey,
        EarPublicKey,
        Tier,
        check_nonce,
        policy_uri,
        sign_ear,
        verify_ear,
    )

__all__ = [
    "LEEWAY",
    "LIFETIME",
    "MAX_TOKEN",
    "PROFILE",
    "Ear",
    "EarKey",
    "EarPublicKey",
    "Tier",
    "check_nonce",
    "policy_uri",
    "sign_ear",
    "verify_ear",
]

# Public name: its module, imported on first use.
_HOME = {
    "LEEWAY": "result_token",
    "LIFETIME": "result_token",
    "MAX_TOKEN": "result_token",
    "PROFILE": "result_token",
    "Ear": "result_token",
    "EarKey": "result_token",
    "EarPublicKey": "result_token",
    "Tier": "result_token",
    "check_nonce": "result_token",
    "policy_uri": "result_token",
    "sign_ear": "result_token",
    "verify_ear": "result_token",
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
