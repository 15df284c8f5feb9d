"""Authentication of an AWS Nitro Enclave attestation document: COSE signature and certificates.

The rules are those of attestation-format.md, section 9, the limits those of AWS's description of
the attestation document (Nitro Enclaves NSM API, attestation process). NitroTPM documents have the
same format, and are rejected.
"""

from datetime import datetime, timedelta, timezone
from typing import Final

from attestkit._crypto.p384 import p384_verify
from attestkit._crypto.x509.cert_path import PathCertificate, check_path, read_path_certificate
from attestkit._crypto.x509.vendor_roots import AWS_ROOT
from attestkit._formats.cbor import read_value
from attestkit._reasons import VerificationStep
from attestkit.attestation.nitro_document import NitroDocument, read_nitro_document
from attestkit.errors import (
    FormatError,
    SignatureError,
    UnsupportedError,
    VerificationError,
)
from attestkit.verifier.result import NO_REVOCATION, Authenticated, Tcb, caution, passed

_MAX_AGE: Final = timedelta(seconds=3600)
_MAX_SKEW: Final = timedelta(seconds=300)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MAX_TIMESTAMP: Final = 253_402_300_799_999  # end of the year 9999, the limit of datetime

_ALGORITHM, _CRITICAL = 1, 2  # labels of COSE headers, RFC 9052, 3.1
_ES384: Final = -35  # RFC 9053, 2.1: ECDSA with SHA-384

_MAX_CERTIFICATE: Final = 1024  # bytes of a certificate
_MAX_BUNDLE: Final = 10  # certificates; AWS uses 4
_LIMITS: Final = {"public_key": 1024, "user_data": 512, "nonce": 512}  # bytes
_REGISTERS: Final = 32
_DEBUG: Final = caution(
    "debug",
    "the enclave runs in debug mode: its PCRs 0 to 2 are zero, so nothing measures its image and "
    "its memory can be read; only its signature was verified here",
)


class Nitro:
    """Authenticator of Nitro documents under AWS's root or a trust anchor."""

    def __init__(self, trust_anchor: bytes | None = None) -> None:
        """Set the trust anchor, in DER; None is AWS Nitro Enclaves Root G1.

        Raises:
            FormatError: If it is not a certificate.
        """
        self._name = "AWS's root" if trust_anchor is None else "the trust anchor"
        self._anchor = read_path_certificate(AWS_ROOT if trust_anchor is None else trust_anchor)

    @property
    def genuine(self) -> bool:
        """Whether the trust anchor has the key of AWS's root."""
        return self._anchor.spki == read_path_certificate(AWS_ROOT).spki

    def authenticate(self, document: bytes, now: datetime) -> Authenticated:
        """Verify a document, and return its signed content.

        Args:
            document: COSE_Sign1, tagged or untagged.
            now: Time of the verification, with a time zone.

        Raises:
            FormatError: If the document is malformed or exceeds a limit.
            SignatureError: If the signature or certificate path is not valid.
            CollateralExpiredError: If a certificate is not valid at `now`.
            VerificationError: If the document is over an hour old, or over 5 minutes in the future
                (`document_expired`).
            UnsupportedError: If it is a NitroTPM document.
        """
        found = read_nitro_document(document)
        _check_limits(found)
        _check_algorithm(found)
        path = [*_certificates(found), (self._name, self._anchor)]
        check_path(path, now)
        _, signer = path[0]
        try:
            p384_verify(signer.spki, found.signature, found.signed_region)
        except SignatureError as error:
            message = f"Nitro document: {error}"
            raise SignatureError(message, reason="document_bad_signature") from error
        made = _check_age(found, now)
        return Authenticated(
            status=None,
            advisory_ids=(),
            report_data=found.user_data,
            device=found.module_id.partition("-")[0].encode(),
            tcb=Tcb(),
            chain=tuple([certificate.der for _, certificate in path]),
            steps=_steps(found, self._name, made),
        )


def _check_limits(document: NitroDocument) -> None:
    """Check the fields of a document against AWS's limits."""
    if document.tpm:
        message = "Nitro document: from a NitroTPM, which is not supported"
        raise UnsupportedError(message, reason="feature")
    if not document.module_id:
        raise FormatError("Nitro document: empty module_id", reason="missing")
    if document.digest != "SHA384":
        raise FormatError("Nitro document: digest must be SHA384", reason="unsupported_algorithm")
    if document.timestamp_ms is None or not 0 < document.timestamp_ms <= _MAX_TIMESTAMP:
        raise FormatError("Nitro document: timestamp missing or out of range", reason="wrong_value")
    for name, limit in _LIMITS.items():
        if len(getattr(document, name)) > limit:
            raise FormatError(f"Nitro document: {name}: over {limit} bytes", reason="too_large")
    if not all(0 <= index < _REGISTERS for index in document.pcrs):
        message = f"Nitro document: PCR index must be 0 to {_REGISTERS - 1}"
        raise FormatError(message, reason="wrong_value")
    for index in range(3):
        document.pcr(index)


def _check_algorithm(document: NitroDocument) -> None:
    """Check that the protected header has ES384, and no other critical parameter."""
    header = read_value(document.protected) if document.protected else {}
    if not isinstance(header, dict):
        raise FormatError("Nitro document: protected header is not a map", reason="wrong_type")
    algorithm = header.get(_ALGORITHM)
    if isinstance(algorithm, bool) or algorithm != _ES384:
        raise SignatureError("Nitro document: algorithm must be ES384", reason="document_algorithm")
    # RFC 9052, 3: unsupported critical parameters must be rejected.
    if _CRITICAL in header and header[_CRITICAL] != [_ALGORITHM]:
        message = "Nitro document: unsupported critical header parameter"
        raise SignatureError(message, reason="document_critical_header")
    if document.unprotected & {_ALGORITHM, _CRITICAL}:
        message = "Nitro document: alg or crit in the unprotected header"
        raise SignatureError(message, reason="document_algorithm")


def _certificates(document: NitroDocument) -> list[tuple[str, PathCertificate]]:
    """Return the certificates below the root, signer first; cabundle[0] is the root."""
    bundle = document.cabundle
    if not 1 <= len(bundle) <= _MAX_BUNDLE:
        message = f"Nitro document: cabundle: {len(bundle)} certificates, must be 1 to 10"
        raise FormatError(message, reason="wrong_size")
    if not all(1 <= len(der) <= _MAX_CERTIFICATE for der in (document.certificate, *bundle)):
        message = f"Nitro document: a certificate is empty or over {_MAX_CERTIFICATE} bytes"
        raise FormatError(message, reason="wrong_size")
    named = [("Nitro document: certificate", document.certificate)]
    named += [(f"Nitro document: cabundle[{n}]", bundle[n]) for n in range(len(bundle) - 1, 0, -1)]
    found: list[tuple[str, PathCertificate]] = []
    for name, der in named:
        try:
            found.append((name, read_path_certificate(der)))
        except FormatError as error:
            raise SignatureError(f"{name}: malformed: {error}", reason="cert_malformed") from error
    return found


def _check_age(document: NitroDocument, now: datetime) -> datetime:
    """Return the timestamp of a document, at most 1 hour before or 5 minutes after `now`."""
    assert document.timestamp_ms is not None  # _check_limits
    made = _EPOCH + timedelta(milliseconds=document.timestamp_ms)
    if not -_MAX_SKEW <= now - made <= _MAX_AGE:
        raise VerificationError(
            f"Nitro document: made {made:%Y-%m-%d %H:%M:%S} UTC, not within {_MAX_AGE.seconds} s "
            f"before or {_MAX_SKEW.seconds} s after "
            f"{now.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}; request a new one from the enclave",
            reason="document_expired",
        )
    return made


def _steps(document: NitroDocument, root: str, made: datetime) -> tuple[VerificationStep, ...]:
    steps = (
        passed(
            "certificates",
            f"the certificates of module {document.module_id} lead to {root} and are valid",
        ),
        NO_REVOCATION,
        passed("signature", "the Nitro document's signature is valid (ECDSA P-384, SHA-384)"),
        passed("timestamp", f"the Nitro document was made at {made:%Y-%m-%d %H:%M:%S} UTC"),
    )
    return steps if any(document.pcr(0) + document.pcr(1) + document.pcr(2)) else (*steps, _DEBUG)
