"""Evidence in the certificate of a client of the KMS."""

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from attestkit import ra_tls
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._sanitize import one_line
from attestkit.attestation import Attestation
from attestkit.errors import AttestKitError, VerificationError
from attestkit.report_data import ReportData
from attestkit.serve.http.asgi import Scope
from attestkit.serve.http.tls import client_certificate
from attestkit.serve.kms_service.errors import KmsRefusalError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_MAX_SHOWN: Final = 300  # characters of an error about untrusted evidence
_READ: Final = "attestkit.client_evidence"  # key in the TLS extension of the connection's scopes


class ClientEvidence(NamedTuple):
    """Evidence in a client's certificate, not verified yet; its report data is checked."""

    attestation: Attestation
    report_data: bytes  # 64 bytes with the hash of the certificate's key


current_client: Final[ContextVar[ClientEvidence | None]] = ContextVar("current_client")
"""Evidence of the client of the current request; None without evidence."""


RunReading: TypeAlias = (
    "Callable[[Callable[[], ClientEvidence | None]], Awaitable[ClientEvidence | None]]"
)
"""Runs a function in a thread, within the limits of the requests."""


class EvidenceAccess:
    """Check of a request before its body is read, by the evidence in the client's certificate.

    The evidence must be decodable, with report data for the certificate's key. A request without a
    certificate passes; methods that need evidence refuse it. OpenSSL limits a certificate to
    100 KiB, and the queue of `run` limits how many wait.

    Args:
        run: Reads the evidence of a certificate in a thread.
    """

    def __init__(self, run: RunReading) -> None:
        self._run = run

    async def check(self, request: Scope, route: str | None) -> None:
        """Read the evidence of a request to a method, and set `current_client`.

        `route` is the name of the method; for a view, or None (an unknown path), nothing is read.

        Raises:
            KmsRefusalError: If evidence is malformed, or its report data is not for the
                certificate's key.
            KmsBusyError: If too many requests wait, or the result is late.
        """
        if route is None or route.startswith("/"):  # not a method
            return
        current_client.set(await self._read(request))

    async def _read(self, request: Scope) -> ClientEvidence | None:
        """Return the evidence of a connection; it is read at the connection's first request."""
        certificate = client_certificate(request)
        if certificate is None:
            return None
        tls = request["extensions"]["tls"]
        if _READ not in tls:
            tls[_READ] = await self._run(lambda: read_client_evidence(certificate))
        found: ClientEvidence | None = tls[_READ]
        return found


def read_client_evidence(certificate: str) -> ClientEvidence | None:
    """Return the evidence in a client's certificate in PEM; None if the certificate has none.

    Raises:
        KmsRefusalError: If evidence is malformed, or its report data is not for the certificate's
            key.
    """
    try:
        found = read_certificate(certificate)
        contents = map(found.content, (ra_tls.OID_ATTESTATION, ra_tls.OID_TDX_QUOTE))
        if all(content is None for content in contents):
            return None
        bound = ReportData.bind(ReportData.RATLS_CERT, found.spki_der)
        return ClientEvidence(ra_tls.read(certificate), bound)
    except VerificationError as error:
        if error.reason == "report_data":
            raise KmsRefusalError(f"invalid quote: {error}") from error
        raise _undecodable(error) from error
    except AttestKitError as error:
        raise _undecodable(error) from error


def _undecodable(error: AttestKitError) -> KmsRefusalError:
    text = one_line(str(error), _MAX_SHOWN)
    return KmsRefusalError(f"Failed to decode attestation from cert extension: {text}")
