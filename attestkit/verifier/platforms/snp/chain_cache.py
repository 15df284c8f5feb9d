"""Cache of AMD's certificates that one verifier has verified, for further reports of a chip.

Beside the signatures of `ChainCache`, parsed certificates and keys are cached: they are the same
for the same bytes. Whether a certificate is that of the report's key is checked for each report.
"""

from collections.abc import Sequence
from typing import Final

from attestkit._crypto.p384 import P384PublicKey
from attestkit.verifier.chain_cache import ChainCache
from attestkit.verifier.dcap.fact_cache import FactCache
from attestkit.verifier.platforms.snp.chain import Endorsement

_CHIPS: Final = 1024  # with about 10 kB each
_LARGEST: Final = 12_288  # bytes of certificates that are kept parsed; a table has about 6,000


class SnpChainCache(ChainCache):
    """Caches of one verifier. Thread-safe, and safe in a forked process."""

    def __init__(self) -> None:
        """Create empty caches."""
        super().__init__(2 * _CHIPS)
        self._keys: FactCache[bytes, P384PublicKey] = FactCache(_CHIPS)
        self._parsed: FactCache[tuple[bytes, ...], tuple[Endorsement, ...]] = FactCache(_CHIPS)

    def key(self, spki: bytes) -> P384PublicKey:
        """Return the key of a certificate whose path is valid; SignatureError if not P-384."""
        return self._keys.get(spki, lambda: P384PublicKey(spki))

    def find_parsed(self, cert_chain: Sequence[bytes]) -> tuple[Endorsement, ...] | None:
        """Return the certificates of evidence that was authentic before; None if not known."""
        return self._parsed.find(tuple(cert_chain)) if cert_chain else None

    def keep_parsed(self, cert_chain: Sequence[bytes], found: tuple[Endorsement, ...]) -> None:
        """Keep the certificates of authentic evidence."""
        if cert_chain and sum(map(len, cert_chain)) <= _LARGEST:
            self._parsed.get(tuple(cert_chain), lambda: found)
