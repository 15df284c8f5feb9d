"""Cache of the signatures in certificate paths that one verifier has verified.

A signature of a certificate is valid or not, whatever the time. Only this fact is cached, and only
for certificates whose path to a trusted root was valid. Dates, usages and revocation are checked
for each evidence.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from attestkit._crypto.x509.cert_path import (
    NamedCertificate,
    PathRules,
    check_issued,
    read_path_certificate,
)
from attestkit._outcomes.reasons import SignatureReason
from attestkit._system.bounded_cache import BoundedCache


class ChainCache:
    """Cache of one verifier, for certificates that are checked by one set of path rules.

    Thread-safe, and safe in a forked process.
    """

    def __init__(self, size: int) -> None:
        """Create an empty cache of at most `size` signatures."""
        self._issued = BoundedCache[tuple[bytes, bytes], bool](size)

    def check_issued(
        self,
        named: NamedCertificate,
        issuer: NamedCertificate,
        reason: SignatureReason,
        rules: PathRules,
        *,
        store: bool = True,
    ) -> None:
        """Check that an issuer signed a certificate, unless the cache has the signature.

        Args:
            named: The certificate, with its name for errors.
            issuer: Certificate of the issuer, with its name for errors.
            reason: Reason of the error.
            rules: Rules for paths, which list the allowed signature algorithms.
            store: Whether a valid signature is stored; False if the issuer is not trusted yet.

        Raises:
            SignatureError: If the certificate names another issuer, or its signature is not valid.
        """

        def check() -> bool:
            check_issued(named, issuer, reason, rules)
            return True

        self._issued.get((named[1].der, issuer[1].der), check, store=store)

    def keep_path(self, path: Sequence[NamedCertificate]) -> None:
        """Store the signatures of a valid path, which `check_issued` verified.

        Args:
            path: Certificates with their names: leaf first, a trusted root last.
        """
        for (_, certificate), (_, issuer) in pairwise(path):
            self._issued.get((certificate.der, issuer.der), lambda: True)


@lru_cache(maxsize=32)
def root_key(root: bytes) -> bytes:
    """Return the key of a vendor's root certificate (DER): SubjectPublicKeyInfo in DER, cached."""
    return read_path_certificate(root).spki
