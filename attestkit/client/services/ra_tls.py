"""RA-TLS: the certificate of the server has the evidence (attested-client.md, 2.1 A)."""

from typing import Final

from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.client.services.service import Binding, Claims, Machine, ObservedPeer, Question
from attestkit.errors import ServiceError
from attestkit.ra_tls import certificate as ra_tls
from attestkit.report_data import ReportData

NO_NAME: Final = (
    "that the server is the one of this name: anybody who runs the program has such a certificate "
    "(server_ca= names an issuer)"
)


class RaTls:
    """A server whose certificate has the evidence; nothing is asked."""

    name = "ra-tls"
    where = "handshake"

    def recognizes(self, host: str) -> bool:
        """Return False: the certificate shows it."""
        return False

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return nothing."""
        return ()

    def read(
        self,
        answers: tuple[bytes, ...],
        nonce: bytes,
        seen: ObservedPeer | None,
        model: str | None,
    ) -> Claims:
        """Return the claims of the certificate.

        Raises:
            FormatError: If certificate or evidence are malformed.
            VerificationError: If evidence is missing, or it is bound to another key.
            ServiceError: If no connection was observed.
        """
        if seen is None:
            message = "ra-tls: the evidence is in the handshake, and none was observed"
            raise ServiceError(message, reason="no_attestation")
        evidence = ra_tls.read(seen.certificate)
        machine = Machine(
            "server",
            evidence,
            ReportData.bind("ratls-cert", seen.spki),
            certificate=seen.certificate,
        )
        return Claims(
            machines=(machine,),
            bindings=(Binding("ra-tls", seen.spki_sha256, "server"),),
            freshness="key possession",
            valid_until=read_certificate(seen.certificate).valid_until,
            not_proven=(
                "how old the evidence is: the certificate's dates are its maker's word",
                NO_NAME,
            ),
        )


SERVICES: Final = (RaTls(),)
