"""Rules of paths whose keys are all on one curve: NVIDIA's on P-384, a dstack KMS's on P-256."""

from functools import lru_cache
from typing import Final

from attestkit._crypto.ecdsa import ECDSA_SHA256, P256_SPKI_HEAD, p256_verify_der
from attestkit._crypto.p384 import ECDSA_SHA384, load_p384_key
from attestkit._crypto.x509.cert_path import (
    VENDOR_RULES,
    NamedCertificate,
    PathRules,
    check_issued,
    read_path_certificate,
)
from attestkit._crypto.x509.names import public_key_bits
from attestkit.errors import FormatError, SignatureError

_EXTENDED_KEY_USAGE, _ALT_NAMES = "2.5.29.37", "2.5.29.17"

# Certificates of chains, manifests and OCSP answers recur in each other's checks, and in other
# evidence. Reading verifies nothing; each takes at most 16 KiB.
read_kept_certificate: Final = lru_cache(maxsize=512)(read_path_certificate)
"""`read_path_certificate`, with the last certificates kept."""


def p384_rules(cached: int, *critical: str) -> PathRules:
    """Return rules for ECDSA P-384 with SHA-384.

    Valid signatures are cached, because many paths have the same CAs, and their validity does not
    change with time. Paths are verified from the root down, so untrusted certificates cannot fill
    the cache.

    Args:
        cached: Maximum number of signatures in the cache.
        critical: OIDs of other critical extensions that the caller checks.
    """

    @lru_cache(maxsize=cached)
    def verify(spki: bytes, signature: bytes, data: bytes) -> None:
        load_p384_key(spki).verify_der(signature, data)

    return PathRules(
        {ECDSA_SHA384: verify}, "ECDSA P-384 with SHA-384", VENDOR_RULES.critical | {*critical}
    )


def check_trusted_root(named: NamedCertificate, root: NamedCertificate, rules: PathRules) -> None:
    """Check that a chain's root `named` is the trusted `root`, or a certificate of its key.

    `rules` is the profile of the certificates, by which a signature of `named` is verified.

    Raises:
        SignatureError: If it is not (`untrusted_root`), or is signed with an algorithm that is not
            one of `rules` (`cert_bad_signature`).
    """
    (name, certificate), (root_name, anchor) = named, root
    if certificate.der == anchor.der:
        return
    if (certificate.subject, certificate.spki) != (anchor.subject, anchor.spki):
        raise SignatureError(f"{name}: must be {root_name}", reason="untrusted_root")
    check_issued(named, root, "untrusted_root", rules)


def _verify(spki: bytes, signature: bytes, data: bytes) -> None:
    require_p256_spki(spki)
    p256_verify_der(spki[len(P256_SPKI_HEAD) :], signature, data)


def require_p256_spki(spki: bytes) -> None:
    """Check the encoding of `spki`, a SubjectPublicKeyInfo, not that its point is on the curve.

    Raises:
        SignatureError: If it is not that of a P-256 key with an uncompressed point.
    """
    if not spki.startswith(P256_SPKI_HEAD) or len(spki) != len(P256_SPKI_HEAD) + 64:
        raise SignatureError("public key: must be a P-256 key", reason="invalid_key")


def is_spki(data: bytes) -> bool:
    """Return whether `data` is a SubjectPublicKeyInfo in DER, of any algorithm (RFC 5280, 4.1)."""
    try:
        public_key_bits(data)
    except FormatError:
        return False
    return True


P256_RULES: Final = PathRules(
    {ECDSA_SHA256: _verify},
    "ECDSA P-256 with SHA-256",
    VENDOR_RULES.critical | {_EXTENDED_KEY_USAGE, _ALT_NAMES},
)
"""Rules for paths on P-256. Names and extended key usages are checked by TLS, or not at all."""
