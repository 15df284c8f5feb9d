"""The peer of a TLS connection, as observed in its handshake."""

import hmac
from typing import Any, NamedTuple

from attestkit._crypto.der import SEQUENCE, DerReader
from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.names import subject_and_key
from attestkit.errors import FormatError
from attestkit.ra_tls.connection import peer_certificate


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

    def has_key(self, spki_sha256: bytes) -> bool:
        """Return whether the peer's key has a hash, compared in constant time.

        Args:
            spki_sha256: SHA-256 of a SubjectPublicKeyInfo, 32 bytes.
        """
        return hmac.compare_digest(self.spki_sha256, spki_sha256)


def observe_peer(connection: Any, host: str, port: int) -> ObservedPeer:  # noqa: ANN401 - of ssl
    """Return the peer of a connection whose handshake has finished.

    Args:
        connection: An SSLSocket, SSLObject, or the `_ssl._SSLSocket` inside of them.
        host: Name or address of the server, as requested.
        port: Port of the server.

    Raises:
        VerificationError: If the peer sent no certificate (reason `no_certificate`), or resumed a
            session (`session_reused`).
        FormatError: If the certificate is malformed.
    """
    certificate = peer_certificate(connection)
    return ObservedPeer(host, port, certificate, read_spki(certificate))


def read_spki(certificate: bytes) -> bytes:
    """Return the bytes of the SubjectPublicKeyInfo of a certificate in DER.

    Only the fields before it are decoded, because some certificates that OpenSSL accepts have
    fields that stricter decoders refuse; the handshake has shown that the peer has the key.

    Raises:
        FormatError: If one of these fields or the SubjectPublicKeyInfo is malformed.
    """
    try:
        return subject_and_key(DerReader(certificate).enter(SEQUENCE).whole(SEQUENCE))[1]
    except FormatError as error:
        message = f"TLS peer: certificate is malformed: {error}"
        raise FormatError(message, reason=error.reason) from error
