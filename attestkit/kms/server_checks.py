"""Checks of a KMS's server certificate, after the handshake and before a request."""

from typing import TYPE_CHECKING

from attestkit.errors import AttestKitError, VerificationError
from attestkit.kms.check_errors import SERVER_EVIDENCE, SERVER_USAGE
from attestkit.kms.tls_chain import require_kms_usage

if TYPE_CHECKING:
    from attestkit.verifier import AttestationResult, Verifier


def check_usage(certificate: bytes) -> None:
    """Check that a certificate (DER) is that of a KMS.

    Raises:
        KmsError: If its usage is another one (`wrong_usage`).
        FormatError: If it is malformed.
    """
    try:
        require_kms_usage(certificate)
    except VerificationError as error:
        raise SERVER_USAGE.failed(error) from error


def verify_evidence(certificate: bytes, verifier: "Verifier") -> "AttestationResult":
    """Verify the evidence in a certificate (DER), and that it is over the certificate's key.

    Raises:
        KmsError: If there is none (`no_evidence`), or it is not accepted (`evidence_refused`).
    """
    from attestkit.ra_tls import verify  # lazy: not every client verifies

    try:
        # No date limits the age of this evidence: the KMS makes its certificate at each start.
        return verify(certificate, verifier, max_lifetime=None)
    except AttestKitError as error:
        raise SERVER_EVIDENCE.failed(error) from error
