"""The peer of a TLS connection, as observed in its handshake."""

from typing import NamedTuple

from attestkit._crypto.hashes import sha256


class ObservedPeer(NamedTuple):
    """The peer of a TLS connection, as observed in its handshake."""

    host: str
    port: int
    certificate: bytes  # DER of the leaf
    spki: bytes  # DER of its SubjectPublicKeyInfo

    @property
    def spki_sha256(self) -> bytes:
        """SHA-256 of the SubjectPublicKeyInfo, 32 bytes."""
        return sha256(self.spki)
