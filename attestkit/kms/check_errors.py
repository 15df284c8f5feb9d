"""Errors of checks that are not about a KMS alone, as errors of the KMS that failed them."""

from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._sanitize import one_line
from attestkit.errors import KmsError

if TYPE_CHECKING:
    from attestkit._reasons import KmsReason

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
