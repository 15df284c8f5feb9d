"""Certificate signing request of dstack-kms (method SignCert).

It is encoded in SCALE; the requested key signs the encoded bytes. Only the evidence in the request
authenticates it.
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
    """A request of version 2; the encoding of its evidence is kept."""

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
        """Decode a request.

        Raises:
            FormatError: If the request, or the evidence in it, is malformed.
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
        """Encode the request; the result is also the message of the signature."""
        first, last = self.not_before, self.not_after
        return b"".join(
            [
                scale.encode_text(_CONFIRM),
                scale.encode_blob(self.pubkey),
                scale.encode_option(
                    None if self.org_name is None else scale.encode_text(self.org_name)
                ),
                scale.encode_text(self.subject),
                scale.encode_vector(map(scale.encode_text, self.subject_alt_names)),
                scale.encode_boolean(self.usage_server_auth),
                scale.encode_boolean(self.usage_client_auth),
                scale.encode_boolean(self.ext_quote),
                scale.encode_boolean(self.ext_app_info),
                scale.encode_option(None if first is None else scale.encode_u64(first)),
                scale.encode_option(None if last is None else scale.encode_u64(last)),
                self.attestation.to_bytes(),
            ]
        )

    def sign(self, key: P256Key) -> bytes:
        """Sign the request with `key`, the private key of `pubkey`; return ECDSA in DER."""
        return key.sign_der(self.to_bytes())


class QuoteCertRequest(NamedTuple):
    """A request of version 1, of older agents: separate quote and event log, fewer fields."""

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
        """Decode a request.

        Raises:
            FormatError: If the request is malformed, or has trailing bytes.
        """
        reader = ScaleReader(data)
        _confirm(reader)
        pubkey = reader.blob()
        org_name = reader.option(reader.text)
        subject, names = reader.text(), reader.vector(reader.text)
        server, client, ext_quote = (reader.boolean() for _ in range(3))
        quote, event_log = reader.blob(), reader.blob()
        if reader.remaining:
            message = f"certificate request: {reader.remaining} bytes after its end"
            raise FormatError(message, reason="trailing_data", offset=reader.at)
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
        """Encode the request; the result is also the message of the signature."""
        return b"".join(
            [
                scale.encode_text(_CONFIRM),
                scale.encode_blob(self.pubkey),
                scale.encode_option(
                    None if self.org_name is None else scale.encode_text(self.org_name)
                ),
                scale.encode_text(self.subject),
                scale.encode_vector(map(scale.encode_text, self.subject_alt_names)),
                scale.encode_boolean(self.usage_server_auth),
                scale.encode_boolean(self.usage_client_auth),
                scale.encode_boolean(self.ext_quote),
                scale.encode_blob(self.quote),
                scale.encode_blob(self.event_log),
            ]
        )


def check_signature(pubkey: bytes, signature: bytes, data: bytes) -> None:
    """Verify the signature over an encoded request.

    Args:
        pubkey: SubjectPublicKeyInfo of the request, a P-256 key.
        signature: ECDSA with SHA-256, DER.
        data: The request as received.

    Raises:
        SignatureError: If the signature is not valid, or the key is not a P-256 key.
    """
    if len(pubkey) != _P256_SPKI_SIZE or not pubkey.startswith(P256_SPKI_HEAD):
        raise SignatureError("Unsupported algorithm", reason="invalid_key")
    try:
        p256_verify_der(pubkey[len(P256_SPKI_HEAD) :], signature, data)
    except SignatureError as error:
        raise SignatureError("Invalid signature", reason="bad_signature") from error


def _confirm(reader: ScaleReader) -> None:
    if reader.text() != _CONFIRM:
        raise FormatError("Invalid confirm word", reason="wrong_value")
