"""The request with which an agent has a key service sign a certificate (SignCert of dstack-kms).

It is SCALE, and its bytes are what the requested key signs. Nothing but the evidence at its end
makes the request credible.
"""

from typing import Final, NamedTuple

from attestkit._crypto.ecdsa import P256_SPKI_HEAD, P256Key, p256_verify_der
from attestkit.attestation import Attestation
from attestkit.attestation.wire import scale
from attestkit.attestation.wire.scale import ScaleReader
from attestkit.errors import FormatError, SignatureError

__all__ = ["CertRequest", "QuoteCertRequest", "check_signature"]

_CONFIRM: Final = "please sign cert:"
_P256_SPKI_SIZE: Final = 91


class CertRequest(NamedTuple):
    """A request of version 2; its evidence is read and written as it is."""

    pubkey: bytes  # SubjectPublicKeyInfo in DER
    subject: str
    attestation: Attestation
    org_name: str | None = None
    subject_alt_names: tuple[str, ...] = ()
    usage_server_auth: bool = False
    usage_client_auth: bool = False
    ext_quote: bool = False
    ext_app_info: bool = False
    not_before: int | None = None  # seconds since 1970, 64 bits
    not_after: int | None = None

    @classmethod
    def from_bytes(cls, data: bytes) -> "CertRequest":
        """Read a request.

        Raises:
            FormatError: It breaks the format, or the evidence in it does.
        """
        reader = ScaleReader(data)
        _confirm(reader)
        pubkey = reader.blob()
        org_name = reader.option(reader.text)
        subject, names = reader.text(), reader.vector(reader.text)
        server, client, quote, app_info = (reader.boolean() for _ in range(4))
        not_before, not_after = reader.option(reader.u64), reader.option(reader.u64)
        return cls(
            pubkey=pubkey,
            subject=subject,
            attestation=Attestation.from_bytes(reader.rest()),
            org_name=org_name,
            subject_alt_names=names,
            usage_server_auth=server,
            usage_client_auth=client,
            ext_quote=quote,
            ext_app_info=app_info,
            not_before=not_before,
            not_after=not_after,
        )

    def to_bytes(self) -> bytes:
        """Return the bytes that are sent, and signed."""
        first, last = self.not_before, self.not_after
        return b"".join(
            [
                scale.text(_CONFIRM),
                scale.blob(self.pubkey),
                scale.option(None if self.org_name is None else scale.text(self.org_name)),
                scale.text(self.subject),
                scale.vector(map(scale.text, self.subject_alt_names)),
                scale.boolean(self.usage_server_auth),
                scale.boolean(self.usage_client_auth),
                scale.boolean(self.ext_quote),
                scale.boolean(self.ext_app_info),
                scale.option(None if first is None else scale.u64(first)),
                scale.option(None if last is None else scale.u64(last)),
                self.attestation.to_bytes(),
            ]
        )

    def sign(self, key: P256Key) -> bytes:
        """Return the signature by `key`, whose public half is to be `pubkey`: ECDSA in DER."""
        return key.sign_der(self.to_bytes())


class QuoteCertRequest(NamedTuple):
    """A request of version 1, of older agents: quote and event log apart, fewer fields."""

    pubkey: bytes  # SubjectPublicKeyInfo in DER
    subject: str
    quote: bytes  # raw
    event_log: bytes  # JSON text
    org_name: str | None = None
    subject_alt_names: tuple[str, ...] = ()
    usage_server_auth: bool = False
    usage_client_auth: bool = False
    ext_quote: bool = False

    @classmethod
    def from_bytes(cls, data: bytes) -> "QuoteCertRequest":
        """Read a request.

        Raises:
            FormatError: It breaks the format, or goes on behind it.
        """
        reader = ScaleReader(data)
        _confirm(reader)
        pubkey = reader.blob()
        org_name = reader.option(reader.text)
        subject, names = reader.text(), reader.vector(reader.text)
        server, client, ext_quote = (reader.boolean() for _ in range(3))
        quote, event_log = reader.blob(), reader.blob()
        if reader.remaining:
            raise FormatError(f"{reader.remaining} bytes behind the request", offset=reader.at)
        return cls(
            pubkey=pubkey,
            subject=subject,
            quote=quote,
            event_log=event_log,
            org_name=org_name,
            subject_alt_names=names,
            usage_server_auth=server,
            usage_client_auth=client,
            ext_quote=ext_quote,
        )

    def to_bytes(self) -> bytes:
        """Return the bytes that are sent, and signed."""
        return b"".join(
            [
                scale.text(_CONFIRM),
                scale.blob(self.pubkey),
                scale.option(None if self.org_name is None else scale.text(self.org_name)),
                scale.text(self.subject),
                scale.vector(map(scale.text, self.subject_alt_names)),
                scale.boolean(self.usage_server_auth),
                scale.boolean(self.usage_client_auth),
                scale.boolean(self.ext_quote),
                scale.blob(self.quote),
                scale.blob(self.event_log),
            ]
        )


def check_signature(pubkey: bytes, signature: bytes, data: bytes) -> None:
    """Check the signature over a request, whose bytes are `data`.

    Args:
        pubkey: The request's SubjectPublicKeyInfo, which must be of P-256.
        signature: ECDSA with SHA-256, DER.
        data: The request as it came in.

    Raises:
        SignatureError: The signature does not hold, or the key is of another kind.
    """
    if len(pubkey) != _P256_SPKI_SIZE or not pubkey.startswith(P256_SPKI_HEAD):
        raise SignatureError("Unsupported algorithm")
    try:
        p256_verify_der(pubkey[len(P256_SPKI_HEAD) :], signature, data)
    except SignatureError as error:
        raise SignatureError("Invalid signature") from error


def _confirm(reader: ScaleReader) -> None:
    if reader.text() != _CONFIRM:
        raise FormatError("Invalid confirm word")
