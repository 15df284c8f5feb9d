"""Who signed a document of an AWS Nitro Enclave: the COSE signature, and the path to AWS's root.

The rules are those of attestation-format.md, section 9, and the limits those of AWS's description
of the attestation document (Nitro Enclaves NSM API, attestation process). A NitroTPM's document
looks the same and is another platform's: it is refused.
"""

from datetime import datetime, timedelta, timezone
from typing import Final

from attestkit._crypto.p384 import p384_verify
from attestkit._crypto.x509.cert_path import PathCertificate, check_path, read_path_certificate
from attestkit._crypto.x509.vendor_roots import AWS_ROOT
from attestkit._formats.cbor import read_value
from attestkit.attestation.nitro_document import NitroDocument, read_nitro_document
from attestkit.errors import (
    FormatError,
    SignatureError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from attestkit.verifier.result import Authenticated, Tcb

__all__ = ["Nitro"]

_MAX_AGE: Final = timedelta(seconds=3600)
_MAX_SKEW: Final = timedelta(seconds=300)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MAX_TIMESTAMP: Final = 253_402_300_799_999  # the end of the year 9999, where datetime ends too

_ALGORITHM, _CRITICAL = 1, 2  # labels of COSE headers, RFC 9052, 3.1
_ES384: Final = -35  # RFC 9053, 2.1: ECDSA with SHA-384

_MAX_CERTIFICATE: Final = 1024  # bytes, of each in the document
_MAX_BUNDLE: Final = 10  # certificates; AWS has 4
_LIMITS: Final = {"public_key": 1024, "user_data": 512, "nonce": 512}  # bytes
_REGISTERS: Final = 32


class Nitro:
    """AWS's word on enclaves, or that of a root handed in."""

    def __init__(self, trust_anchor: bytes | None = None) -> None:
        """Take the root that is trusted, in DER; None is AWS Nitro Enclaves Root G1.

        Raises:
            FormatError: it is no certificate.
        """
        self._name = "AWS's root" if trust_anchor is None else "the trust anchor"
        self._anchor = read_path_certificate(AWS_ROOT if trust_anchor is None else trust_anchor)

    @property
    def genuine(self) -> bool:
        """Whether the root that is trusted has the key of AWS's."""
        return self._anchor.spki == read_path_certificate(AWS_ROOT).spki

    def authenticate(self, document: bytes, now: datetime) -> Authenticated:
        """Return what AWS vouches for in a document: who signed it, and its user data.

        Args:
            document: COSE_Sign1, with or without its tag.
            now: an aware datetime.

        Raises:
            FormatError: the document breaks its format or its limits.
            SignatureError: the signature does not hold, or no path leads to the root.
            CollateralExpiredError: a certificate is not valid at `now`.
            VerificationError: the document is over an hour old, or from the future; the reason is
                document_expired.
            UnsupportedError: it is a NitroTPM's.
            UsageError: `now` is naive.
        """
        if now.tzinfo is None:
            raise UsageError("the time of a verification is an aware datetime")
        found = read_nitro_document(document)
        _check_limits(found)
        _check_algorithm(found)
        path = [*_certificates(found), (self._name, self._anchor)]
        check_path(path, now)
        _, signer = path[0]
        try:
            p384_verify(signer.spki, found.signature, found.signed_region)
        except SignatureError as error:
            raise SignatureError(
                f"the Nitro document's signature: {error}", reason="document_bad_signature"
            ) from error
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
    """Hold a document to what AWS says of its fields."""
    if document.tpm:
        raise UnsupportedError("this document is a NitroTPM's, which is not verified here")
    if not document.module_id:
        raise FormatError("the Nitro document has an empty module_id")
    if document.digest != "SHA384":
        raise FormatError(f"digest of the Nitro document is {document.digest!r:.40}, not SHA384")
    if document.timestamp_ms is None or not 0 < document.timestamp_ms <= _MAX_TIMESTAMP:
        raise FormatError("timestamp of the Nitro document is missing or cannot be")
    for name, limit in _LIMITS.items():
        if len(getattr(document, name)) > limit:
            raise FormatError(f"{name} of the Nitro document has over {limit} bytes")
    if not all(0 <= index < _REGISTERS for index in document.pcrs):
        raise FormatError(f"the Nitro document has PCRs beside 0 to {_REGISTERS - 1}")
    for index in range(3):
        document.pcr(index)


def _check_algorithm(document: NitroDocument) -> None:
    """Hold the headers to ES384, told where the signature covers it, and nothing else critical."""
    header = read_value(document.protected) if document.protected else {}
    if not isinstance(header, dict):
        raise FormatError("the protected header of the Nitro document is no map")
    algorithm = header.get(_ALGORITHM)
    if isinstance(algorithm, bool) or algorithm != _ES384:
        raise SignatureError(
            f"the Nitro document's algorithm is not {_ES384} (ES384)", reason="document_algorithm"
        )
    # RFC 9052, 3: a header that must be understood is named, and we understand one.
    if _CRITICAL in header and header[_CRITICAL] != [_ALGORITHM]:
        raise SignatureError(
            "the Nitro document has a critical header that is not known",
            reason="document_critical_header",
        )
    if document.unprotected & {_ALGORITHM, _CRITICAL}:
        raise SignatureError(
            "the Nitro document has a header that only a protected one may be",
            reason="document_algorithm",
        )


def _certificates(document: NitroDocument) -> list[tuple[str, PathCertificate]]:
    """Return the path below the root, signer first; the root in the bundle does not count."""
    bundle = document.cabundle
    if not 1 <= len(bundle) <= _MAX_BUNDLE:
        raise FormatError(f"cabundle of the Nitro document has not 1 to {_MAX_BUNDLE} certificates")
    if not all(1 <= len(der) <= _MAX_CERTIFICATE for der in (document.certificate, *bundle)):
        raise FormatError(
            f"a certificate of the Nitro document has not 1 to {_MAX_CERTIFICATE} bytes"
        )
    named = [("the Nitro document's certificate", document.certificate)]
    named += [
        (f"cabundle[{n}] of the Nitro document", bundle[n]) for n in range(len(bundle) - 1, 0, -1)
    ]
    found: list[tuple[str, PathCertificate]] = []
    for name, der in named:
        try:
            found.append((name, read_path_certificate(der)))
        except FormatError as error:
            raise SignatureError(
                f"{name} is malformed: {error}", reason="cert_malformed"
            ) from error
    return found


def _check_age(document: NitroDocument, now: datetime) -> datetime:
    """Return when a document was made, at most an hour before `now` or five minutes after."""
    assert document.timestamp_ms is not None  # _check_limits
    made = _EPOCH + timedelta(milliseconds=document.timestamp_ms)
    if not -_MAX_SKEW <= now - made <= _MAX_AGE:
        raise VerificationError(
            f"the Nitro document was made at {made:%Y-%m-%d %H:%M:%S} UTC, which is not in the "
            f"{_MAX_AGE.seconds} s before {now.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} or the "
            f"{_MAX_SKEW.seconds} s after; ask the enclave for a new one",
            reason="document_expired",
        )
    return made


def _steps(document: NitroDocument, root: str, made: datetime) -> tuple[str, ...]:
    steps = [
        f"the certificates of module {document.module_id} lead to {root} and are valid",
        "revocation was not looked at: no CRL was consulted",
        "the Nitro document's signature holds (ECDSA P-384, SHA-384)",
        f"the Nitro document was made at {made:%Y-%m-%d %H:%M:%S} UTC",
    ]
    if not any(document.pcr(0) + document.pcr(1) + document.pcr(2)):
        steps.append(
            "the enclave runs in debug mode: its PCRs 0 to 2 are zero, so nothing measures its "
            "image and its memory can be read; only its signature was judged here"
        )
    return tuple(steps)
