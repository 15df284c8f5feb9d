"""Templates of primary keys: TPMT_PUBLIC without a key (vtpm.md, section 2.3).

A hierarchy makes the same key of a template every time.
"""

from typing import Final

from attestkit.tpm.public_area import (
    ADMIN_WITH_POLICY,
    DECRYPT,
    FIXED_PARENT,
    FIXED_TPM,
    NO_DA,
    RESTRICTED,
    SENSITIVE_DATA_ORIGIN,
    SIGN,
    USER_WITH_AUTH,
    TpmtPublic,
)

_BOUND_TO_TPM: Final = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED

RSA_AK: Final = TpmtPublic(
    "rsa",
    "sha256",
    _BOUND_TO_TPM | USER_WITH_AUTH | NO_DA | SIGN,
    scheme="rsassa",
    scheme_hash="sha256",
    bits=2048,
)
"""RSA attestation key, as of Azure and Confidential Containers."""

ECC_AK: Final = TpmtPublic(
    "ecc",
    "sha256",
    _BOUND_TO_TPM | USER_WITH_AUTH | SIGN,
    scheme="ecdsa",
    scheme_hash="sha256",
    curve="p256",
)
"""ECC attestation key, as of Google."""

_EK_POLICY: Final = bytes.fromhex(
    "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"  # TPM2_PolicySecret
)

RSA_EK: Final = TpmtPublic(
    "rsa",
    "sha256",
    _BOUND_TO_TPM | ADMIN_WITH_POLICY | DECRYPT,
    policy=_EK_POLICY,
    symmetric=128,
    bits=2048,
    modulus=bytes(256),
)
"""Default endorsement key: RSA-2048, template L-1 of TCG's EK profile."""

ECC_EK: Final = TpmtPublic(
    "ecc",
    "sha256",
    _BOUND_TO_TPM | ADMIN_WITH_POLICY | DECRYPT,
    policy=_EK_POLICY,
    symmetric=128,
    curve="p256",
    x=bytes(32),
    y=bytes(32),
)
"""Default endorsement key: P-256, template L-2 of TCG's EK profile."""

RSA_SRK: Final = TpmtPublic(
    "rsa",
    "sha256",
    _BOUND_TO_TPM | USER_WITH_AUTH | NO_DA | DECRYPT,
    symmetric=128,
    bits=2048,
    modulus=bytes(256),
)
"""Storage root key: RSA-2048, template H-1 of TCG's provisioning guidance."""
