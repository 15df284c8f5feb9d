"""Paths of certificates whose keys are all on P-256, as those of a dstack KMS (kms.md, 1.6)."""

from typing import Final

from attestkit._crypto.der import SEQUENCE, DerReader
from attestkit._crypto.ecdsa import P256_SPKI_HEAD, p256_verify_der
from attestkit._crypto.x509.cert_path import VENDOR_RULES, PathRules
from attestkit.errors import FormatError, SignatureError

ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
"""AlgorithmIdentifier of ECDSA with SHA-256 (RFC 5758, 3.2)."""

_EXTENDED_KEY_USAGE, _ALT_NAMES = "2.5.29.37", "2.5.29.17"


def _verify(spki: bytes, signature: bytes, data: bytes) -> None:
    require_p256_spki(spki)
    p256_verify_der(spki[len(P256_SPKI_HEAD) :], signature, data)


def require_p256_spki(spki: bytes) -> None:
    """Check the encoding of a SubjectPublicKeyInfo, not that its point is on the curve.

    Raises:
        SignatureError: If it is not that of a P-256 key with an uncompressed point.
    """
    if not spki.startswith(P256_SPKI_HEAD) or len(spki) != len(P256_SPKI_HEAD) + 64:
        raise SignatureError("public key: must be a P-256 key", reason="invalid_key")


def is_spki(data: bytes) -> bool:
    """Return whether bytes are a SubjectPublicKeyInfo in DER, of any algorithm (RFC 5280, 4.1)."""
    try:
        outer = DerReader(data)
        fields = outer.enter(SEQUENCE)
        outer.finish()
        fields.enter(SEQUENCE)
        fields.bits()
        fields.finish()
    except FormatError:
        return False
    return True


P256_RULES: Final = PathRules(
    {ECDSA_SHA256: _verify},
    "ECDSA P-256 with SHA-256",
    VENDOR_RULES.critical | {_EXTENDED_KEY_USAGE, _ALT_NAMES},
)
"""Rules for paths on P-256. Names and extended key usages are checked by TLS, or not at all."""
