"""Attestation results as signed tokens (EAR), in JWT or COSE: claims, keys, and envelope.

`sign_ear` signs a result; `verify_ear` verifies a token.
"""

from attestkit.verifier.ear.content import PROFILE, Ear
from attestkit.verifier.ear.result_token import LEEWAY, LIFETIME, policy_uri, sign_ear, verify_ear
from attestkit.verifier.ear.signed_token import MAX_TOKEN, EarKey, EarPublicKey
from attestkit.verifier.ear.token_claims import Tier

__all__ = [
    "LEEWAY",
    "LIFETIME",
    "MAX_TOKEN",
    "PROFILE",
    "Ear",
    "EarKey",
    "EarPublicKey",
    "Tier",
    "policy_uri",
    "sign_ear",
    "verify_ear",
]
