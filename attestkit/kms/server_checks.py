"""Checks of a KMS's server certificate, after the handshake and before a request."""

from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._sanitize import one_line
from attestkit.errors import AttestKitError, KmsError, VerificationError
from attestkit.kms.tls_chain import require_kms_usage

if TYPE_CHECKING:
    from attestkit._reasons import KmsReason
    from attestkit.verifier import AttestationResult, Verifier

_MAX_SHOWN: Final = 600  # characters of an error


class KmsCheck(NamedTuple):
    """A check, and the reasons of its errors."""

    subject: str  # begin of the text; may be empty
    reason: "KmsReason"
    others: "tuple[tuple[str, KmsReason], ...]" = ()  # instead, for errors with these reasons

    def failed(self, problem: Exception | str) -> KmsError:
        """Return the error for a problem that the check found."""
        reason = dict(self.others).get(getattr(problem, "reason", ""), self.reason)
        start = f"{self.subject}: " if self.subject else ""
        return KmsError(f"{start}{one_line(str(problem), _MAX_SHOWN)}", reason=reason)


APP_CHAIN: Final = KmsCheck(
    "SignCert",
    "wrong_certificate",
    (("untrusted_root", "wrong_root"), ("cert_expired", "expired")),
)
"""The chain in the answer to SignCert."""

SERVER_USAGE: Final = KmsCheck("", "wrong_usage")
"""The usage of the server's certificate."""

SERVER_EVIDENCE: Final = KmsCheck(
    "evidence of the KMS", "evidence_refused", (("no_evidence", "no_evidence"),)
)
"""The evidence in the server's certificate."""

SEALED_CONFIGURATION: Final = KmsCheck("configuration sealed at launch", "wrong_provider")
"""What a guest's launch has sealed about its key provider."""


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
