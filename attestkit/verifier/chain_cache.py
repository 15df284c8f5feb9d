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

        Arguments and errors are those of `check_issued` of `cert_path`. If `store` is false,
        because the issuer is not trusted yet, a valid signature is not stored.
        """

        def check() -> bool:
            check_issued(named, issuer, reason, rules)
            return True

        self._issued.get((named[1].der, issuer[1].der), check, store=store)

    def keep_path(self, path: Sequence[NamedCertificate]) -> None:
        """Store the signatures of a valid path to a trusted root, which `check_issued` verified."""
        for (_, certificate), (_, issuer) in pairwise(path):
            self._issued.get((certificate.der, issuer.der), lambda: True)


@lru_cache(maxsize=32)
def root_key(root: bytes) -> bytes:
    """Return the key of a vendor's root certificate: SubjectPublicKeyInfo in DER, cached."""
    return read_path_certificate(root).spki
