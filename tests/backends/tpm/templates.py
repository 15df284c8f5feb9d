"""Templates of keys, and selections of PCRs."""

from typing import Final

from attestkit.tpm import PcrSelection, TpmtPublic

AK_ATTRIBUTES: Final = 0x00050072

ECC_AK: Final = TpmtPublic(
    "ecc", "sha256", AK_ATTRIBUTES, scheme="ecdsa", scheme_hash="sha256", curve="p256"
)
P384_AK: Final = ECC_AK._replace(curve="p384", scheme_hash="sha384")
RSA_AK: Final = TpmtPublic(
    "rsa", "sha256", 0x00050472, scheme="rsassa", scheme_hash="sha256", bits=2048
)
_EK_POLICY: Final = "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
EK: Final = TpmtPublic(
    "rsa", "sha256", 0x000300B2, bytes.fromhex(_EK_POLICY), 128, bits=2048, modulus=bytes(256)
)
EVERY_PCR: Final = tuple(range(24))
SHA256: Final = (PcrSelection("sha256", EVERY_PCR),)
