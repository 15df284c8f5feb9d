"""Paths of certificates whose keys are all on P-384, as those of NVIDIA (nvidia-gpu.md, 3.2)."""

from functools import lru_cache
from typing import Final

from attestkit._crypto.p384 import ECDSA_SHA384, load_p384_key
from attestkit._crypto.x509.cert_path import (
    VENDOR_RULES,
    NamedCertificate,
    PathRules,
    check_issued,
    read_path_certificate,
)
from attestkit.errors import SignatureError

# Certificates of chains, manifests and OCSP answers recur in each other's checks, and in other
# evidence. Reading verifies nothing; each takes at most 16 KiB.
read_kept_certificate: Final = lru_cache(maxsize=512)(read_path_certificate)
"""`read_path_certificate`, with the last certificates kept."""


def p384_rules(cached: int, *critical: str) -> PathRules:
    """Return rules for ECDSA P-384 with SHA-384.

    Verified signatures are kept, because many paths have the same CAs. A signature is valid or not,
    whatever the time; errors are not kept. Paths are verified from the root down, so untrusted
    certificates cannot fill the cache.

    Args:
        cached: Number of signatures to keep.
        critical: OIDs of other critical extensions that the caller checks.
    """

    @lru_cache(maxsize=cached)
    def verify(spki: bytes, signature: bytes, data: bytes) -> None:
        load_p384_key(spki).verify_der(signature, data)

    return PathRules(
        {ECDSA_SHA384: verify}, "ECDSA P-384 with SHA-384", VENDOR_RULES.critical | {*critical}
    )


def check_trusted_root(named: NamedCertificate, root: NamedCertificate, rules: PathRules) -> None:
    """Check that the root of a chain is the trusted one, or another certificate of its key.

    Raises:
        SignatureError: If it is not (`untrusted_root`).
    """
    (name, certificate), (root_name, anchor) = named, root
    if certificate.der == anchor.der:
        return
    if (certificate.subject, certificate.spki) != (anchor.subject, anchor.spki):
        raise SignatureError(f"{name} is not {root_name}", reason="untrusted_root")
    check_issued(named, root, "untrusted_root", rules)
