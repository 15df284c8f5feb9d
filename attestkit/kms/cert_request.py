"""Certificate requests to a KMS in SCALE, versions 1 and 2 (dstack, ra-tls).

The evidence in a request has report data for its public key; the private key signs the request.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from attestkit._crypto.ecdsa import P256Key, p256_verify_der
from attestkit._crypto.x509.path_rules import is_spki, require_p256_spki
from attestkit._sanitize import shown
from attestkit.attestation import MAX_SIZE, Attestation
from attestkit.attestation.wire import scale
from attestkit.attestation.wire.scale import ScaleReader
from attestkit.errors import FormatError, SignatureError, UsageError

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import FormatReason

MAX_REQUEST: Final = MAX_SIZE + (1 << 16)
"""Maximum size of a certificate request in bytes: evidence of 10 MiB and 64 KiB of names."""

MAX_ALT_NAMES: Final = 256
"""Maximum number of subject alternative names."""

_CONFIRM: Final = "please sign cert:"
_U64: Final = 8
_SPKI_HEAD: Final = 27


class CertRequest(NamedTuple):
    """Content of a certificate request to a KMS (SignCert); its signature is separate.

    Version 1 has `quote` and `event_log`, version 2 `evidence`; fields that a version lacks have
    their defaults.
    """

    pubkey: bytes  # SubjectPublicKeyInfo in DER
    subject: str  # common name
    evidence: Attestation | None  # None: version 1, see `attested`
    org_name: str | None = None
    subject_alt_names: tuple[str, ...] = ()
    usage_server_auth: bool = False
    usage_client_auth: bool = False
    ext_quote: bool = False  # include the evidence in the certificate
    ext_app_info: bool = False
    not_before: int | None = None  # seconds since 1970
    not_after: int | None = None
    confirm: str = _CONFIRM
    quote: bytes = b""  # version 1
    event_log: bytes = b""  # version 1: JSON

    def to_bytes(self) -> bytes:
        """Encode the request in version 2.

        Raises:
            UsageError: If the evidence is missing, a value cannot be encoded, the alternative names
                are over 256, or the request is too large.
        """
        if self.evidence is None:
            message = (
                "certificate request: evidence: missing; a request of version 1 cannot be encoded, "
                "one of version 2 needs the evidence (`attested()` returns that of version 1)"
            )
            raise UsageError(message, reason="missing")
        check_alt_names(self.subject_alt_names)
        org_name = b"\0" if self.org_name is None else b"\1" + scale.encode_text(self.org_name)
        flags = (self.usage_server_auth, self.usage_client_auth, self.ext_quote, self.ext_app_info)
        encoded = b"".join(
            (
                scale.encode_text(self.confirm),
                scale.encode_blob(self.pubkey),
                org_name,
                scale.encode_text(self.subject),
                scale.encode_vector(map(scale.encode_text, self.subject_alt_names)),
                bytes(flags),
                _encode_time("not_before", self.not_before),
                _encode_time("not_after", self.not_after),
                self.evidence.to_bytes(),
            )
        )
        if len(encoded) > MAX_REQUEST:
            message = f"certificate request: {len(encoded)} bytes, at most {MAX_REQUEST}"
            raise UsageError(message, reason="too_large")
        return encoded

    def attested(self) -> Attestation:
        """Return the evidence; that of version 1 is built from quote and event log.

        Raises:
            FormatError: If quote or event log of version 1 is malformed; the text is that of
                dstack's KMS.
        """
        if self.evidence is not None:
            return self.evidence
        try:
            return Attestation.from_quote_and_log(self.quote, self.event_log.decode())
        except (FormatError, UnicodeDecodeError) as error:
            problem, reason = _problem(error)
            message = f"Failed to upgrade csr v1 to v2: {problem}"
            raise FormatError(message, reason=reason) from error


def check_alt_names(names: Sequence[str]) -> None:
    """Raise UsageError if there are over 256 subject alternative names."""
    if len(names) > MAX_ALT_NAMES:
        message = f"subject_alt_names: must be at most {MAX_ALT_NAMES}, not {len(names)}"
        raise UsageError(message, reason="too_many")


def sign_cert_request(request: CertRequest, key: P256Key) -> tuple[bytes, bytes]:
    """Encode a request as version 2 and sign it.

    Args:
        request: The request.
        key: Private key whose public key is `request.pubkey`.

    Returns:
        The encoded request, and the ECDSA signature over it in DER.

    Raises:
        UsageError: If `key` is not that of `request.pubkey`, or the request cannot be encoded.
    """
    if request.pubkey != key.spki_der:
        message = "certificate request: pubkey must be the public key of the signing key"
        raise UsageError(message, reason="conflict")
    encoded = request.to_bytes()
    return encoded, key.sign_der(encoded)


def decode_cert_request(data: bytes, version: int) -> CertRequest:
    """Decode `data`, a request of this version, 1 or 2; its signature is not verified.

    Raises:
        FormatError: If `version` is neither, or the request is malformed, too large, or followed by
            other bytes. The texts are those of dstack's KMS.
    """
    if version not in (1, 2):
        message = f"Unsupported API version: {version}"
        raise FormatError(message, reason="unsupported_version")
    if len(data) > MAX_REQUEST:
        message = f"Failed to parse csr: over {MAX_REQUEST} bytes"
        raise FormatError(message, reason="too_large")
    reader = ScaleReader(data)
    try:
        return _read_v1(reader) if version == 1 else _read_v2(reader)
    except FormatError as error:
        message = f"Failed to parse csr: {error.message}"
        raise FormatError(message, reason=error.reason, offset=error.offset) from error


def verify_cert_request(data: bytes, signature: bytes, version: int) -> CertRequest:
    """Decode a request, and verify its signature by its own key over the bytes that were received.

    The evidence in it is not verified, nor that it is over the key: see `ReportData.RATLS_CERT`.
    Texts of errors about key, signature and `confirm` are those of dstack's KMS.

    Args:
        data: The request in SCALE.
        signature: ECDSA signature over the SHA-256 of `data`, in DER.
        version: Version of the request, 1 or 2.

    Raises:
        FormatError: As `decode_cert_request`; or if `pubkey` is not a SubjectPublicKeyInfo, or
            `confirm` is not `please sign cert:`.
        SignatureError: If the signature is not valid (reason `bad_signature`), or the key not on
            P-256 (`invalid_key`).
    """
    request, start = decode_cert_request(data, version), "Failed to verify csr signature: "
    if not is_spki(request.pubkey):
        raise FormatError(f"{start}Failed to parse pubkey", reason="syntax")
    try:
        require_p256_spki(request.pubkey)
        p256_verify_der(request.pubkey[_SPKI_HEAD:], signature, data)
    except SignatureError as error:
        is_key = error.reason == "invalid_key"
        text = "Unsupported algorithm" if is_key else "Invalid signature"
        raise SignatureError(f"{start}{text}", reason=error.reason) from error
    if request.confirm != _CONFIRM:
        raise FormatError(f"{start}Invalid confirm word", reason="wrong_value")
    return request


def _read_v1(reader: ScaleReader) -> CertRequest:
    fields = _read_names(reader)
    fields.update(
        usage_server_auth=_read_bool(reader),
        usage_client_auth=_read_bool(reader),
        ext_quote=_read_bool(reader),
        quote=reader.blob(),
        event_log=reader.blob(),
    )
    reader.finish("version 1")
    return CertRequest(evidence=None, **fields)


def _read_v2(reader: ScaleReader) -> CertRequest:
    fields = _read_names(reader)
    fields.update(
        usage_server_auth=_read_bool(reader),
        usage_client_auth=_read_bool(reader),
        ext_quote=_read_bool(reader),
        ext_app_info=_read_bool(reader),
        not_before=_read_time(reader),
        not_after=_read_time(reader),
    )
    start = reader.at
    try:
        evidence = Attestation.from_bytes(reader.data[start:])
    except FormatError as error:
        offset = None if error.offset is None else start + error.offset
        raise FormatError(error.message, reason=error.reason, offset=offset) from error
    return CertRequest(evidence=evidence, **fields)


def _read_names(reader: ScaleReader) -> dict[str, Any]:
    confirm, pubkey = reader.text(), reader.blob()
    org_name = reader.text() if _read_bool(reader) else None
    subject, start = reader.text(), reader.at
    alt_names = reader.vector(ScaleReader.text)
    if len(alt_names) > MAX_ALT_NAMES:
        raise reader.error(f"over {MAX_ALT_NAMES} alternative names", "too_many", start)
    return {
        "confirm": confirm,
        "pubkey": pubkey,
        "org_name": org_name,
        "subject": subject,
        "subject_alt_names": alt_names,
    }


def _read_bool(reader: ScaleReader) -> bool:
    """Read a byte that must be 0 or 1: a bool, or whether an optional value follows."""
    start = reader.at
    if (value := reader.u8()) > 1:
        raise reader.error("a bool or option must be 0 or 1", "wrong_value", start)
    return value == 1


def _read_time(reader: ScaleReader) -> int | None:
    return int.from_bytes(reader.take(_U64), "little") if _read_bool(reader) else None


def _encode_time(argument: str, value: int | None) -> bytes:
    if value is None:
        return b"\0"
    if not 0 <= value < 1 << 8 * _U64:
        message = f"{argument}: must be 0 to 2**64 - 1, not {shown(value)}"
        raise UsageError(message, reason="out_of_range")
    return b"\1" + value.to_bytes(_U64, "little")


def _problem(error: FormatError | UnicodeDecodeError) -> "tuple[str, FormatReason]":
    if isinstance(error, FormatError):
        return error.message, error.reason
    return "event log is not UTF-8", "encoding"
