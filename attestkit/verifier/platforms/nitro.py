"""Authentication of AWS Nitro attestation documents: COSE signature and certificates.

The rules are the same for the documents of enclaves and of NitroTPM. `nitro_tpm` has what concerns
NitroTPM only.
"""

from datetime import datetime, timedelta, timezone
from typing import Final, NamedTuple

from attestkit._crypto.p384 import p384_verify
from attestkit._crypto.x509.cert_path import PathCertificate, check_path, read_path_certificate
from attestkit._crypto.x509.vendor_roots import AWS_ROOT
from attestkit._formats.cbor import read_value
from attestkit._outcomes.steps import VerificationStep, caution, passed
from attestkit.attestation.nitro import NitroDocument, read_nitro_document
from attestkit.errors import FormatError, SignatureError, VerificationError
from attestkit.verifier.chain_cache import ChainCache, root_key
from attestkit.verifier.claims import NO_REVOCATION, Authenticated

_MAX_AGE: Final = timedelta(seconds=3600)
_MAX_SKEW: Final = timedelta(seconds=300)
_KEPT_SIGNATURES: Final = 1024  # of certificates in valid paths
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)

_ALGORITHM, _CRITICAL = 1, 2  # labels of COSE headers, RFC 9052, 3.1
_ES384: Final = -35  # RFC 9053, 2.1: ECDSA with SHA-384

_DEBUG: Final = caution(
    "debug",
    "the enclave runs in debug mode: its PCRs 0 to 2 are zero, so nothing measures its image and "
    "its memory can be read; only its signature was verified here",
)


class SignedDocument(NamedTuple):
    """A Nitro document whose signature and certificates are valid."""

    content: NitroDocument
    chain: tuple[bytes, ...]  # DER of the certificates, leaf first, the anchor last
    steps: tuple[VerificationStep, ...]


class Nitro:
    """Authenticator of Nitro documents under AWS's root or a trust anchor."""

    def __init__(self, trust_anchor: bytes | None = None) -> None:
        """Set the trust anchor, in DER; None is AWS Nitro Enclaves Root G1.

        Raises:
            FormatError: If `trust_anchor` is not a certificate.
        """
        self._name = "AWS's root" if trust_anchor is None else "the trust anchor"
        self._anchor = read_path_certificate(AWS_ROOT if trust_anchor is None else trust_anchor)
        self._cache = ChainCache(_KEPT_SIGNATURES)

    @property
    def root_key(self) -> bytes:
        """Key of AWS's root or the trust anchor: SubjectPublicKeyInfo in DER."""
        return self._anchor.spki

    @property
    def genuine(self) -> bool:
        """Whether the trust anchor has the key of AWS's root."""
        return self._anchor.spki == root_key(AWS_ROOT)

    def authenticate(self, document: bytes, now: datetime) -> Authenticated:
        """Verify the document of an enclave, and return its signed content.

        Debug mode of an enclave is not rejected here but by every policy; a step reports it.

        Args:
            document: COSE_Sign1, tagged or untagged.
            now: Time of the verification, with a time zone.

        Raises:
            FormatError: If the document is malformed, exceeds a limit, or is of a NitroTPM.
            VerificationError: As for `verify_document`.
        """
        signed = self.verify_document(document, now, tpm=False)
        found = signed.content
        debug = not any(found.pcr(0) + found.pcr(1) + found.pcr(2))
        return Authenticated(
            report_data=found.user_data,
            device=found.module_id.partition("-")[0].encode(),
            chain=signed.chain,
            steps=(*signed.steps, _DEBUG) if debug else signed.steps,
        )

    def verify_document(self, document: bytes, now: datetime, *, tpm: bool) -> SignedDocument:
        """Verify algorithm, age, certificates and signature of a document, in this order.

        Args:
            document: COSE_Sign1, tagged or untagged.
            now: Time of the verification, with a time zone. The certificates of a document are
                valid for hours, so an old document verifies only at its own time.
            tpm: Whether the document must be of a NitroTPM; else it must be of an enclave.

        Raises:
            FormatError: If the document is malformed, exceeds a limit, or is not of this kind.
            SignatureError: If the signature or certificate path is not valid.
            CollateralExpiredError: If a certificate is not valid at `now`.
            VerificationError: If the document is over an hour old, or over 5 minutes in the future
                (`document_expired`).
        """
        found = read_nitro_document(document, tpm=tpm)
        _check_algorithm(found)
        made = _check_age(found, now)
        path = [*_certificates(found), (self._name, self._anchor)]
        check_path(path, now, check=self._cache.check_issued)
        _, signer = path[0]
        try:
            p384_verify(signer.spki, found.signature, found.signed_region)
        except SignatureError as error:
            message = f"Nitro document: {error}"
            raise SignatureError(message, reason="document_bad_signature") from error
        chain = tuple([certificate.der for _, certificate in path])
        until = min(certificate.valid_until for _, certificate in path)
        text = (
            f"the certificates of module {found.module_id} lead to {self._name} and are valid at "
            f"{_text_of(now)}, the time of the verification, and until {_text_of(until)}"
        )
        steps = (
            passed("timestamp", f"the Nitro document was made at {_text_of(made)}"),
            passed("certificates", text),
            NO_REVOCATION,
            passed("signature", "the Nitro document's signature is valid (ECDSA P-384, SHA-384)"),
        )
        return SignedDocument(found, chain, steps)


def _check_algorithm(document: NitroDocument) -> None:
    """Check that the protected header has the algorithm ES384, and no critical parameter but it."""
    header = read_value(document.protected) if document.protected else {}
    if not isinstance(header, dict):
        raise FormatError("Nitro document: protected header must be a map", reason="wrong_type")
    algorithm = header.get(_ALGORITHM)
    if isinstance(algorithm, bool) or algorithm != _ES384:
        raise SignatureError("Nitro document: algorithm must be ES384", reason="document_algorithm")
    # RFC 9052, 3: unsupported critical parameters must be rejected.
    if _CRITICAL in header and header[_CRITICAL] != [_ALGORITHM]:
        message = "Nitro document: unsupported critical header parameter"
        raise SignatureError(message, reason="document_critical_header")
    if document.unprotected & {_ALGORITHM, _CRITICAL}:
        message = "Nitro document: alg and crit must not be in the unprotected header"
        raise SignatureError(message, reason="document_algorithm")


def _certificates(document: NitroDocument) -> list[tuple[str, PathCertificate]]:
    """Return the certificates below the root, signer first, each with its name for errors.

    cabundle[0] is the root, which is not returned.
    """
    bundle = document.cabundle
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
    made = _EPOCH + timedelta(milliseconds=document.timestamp_ms)
    if not -_MAX_SKEW <= now - made <= _MAX_AGE:
        raise VerificationError(
            f"Nitro document: must be made within {_MAX_AGE.seconds} s before or "
            f"{_MAX_SKEW.seconds} s after {_text_of(now)}, not {_text_of(made)}; request a new one",
            reason="document_expired",
        )
    return made


def _text_of(time: datetime) -> str:
    return f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
