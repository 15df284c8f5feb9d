"""RA-TLS: the certificate of the server has the evidence (docs/guides/ra-tls.md)."""

import hmac
from typing import Final

from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit.client.services.service import Binding, Claims, Machine, Question, Where
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.errors import FormatError, ServiceError
from attestkit.quote import Quote
from attestkit.ra_tls import certificate as ra_tls
from attestkit.ra_tls.interoperable_certificates import CertificateEvidence, read_interoperable
from attestkit.report_data import ReportData

NO_NAME: Final = (
    "that the server is the one of this name: anybody who runs the program has such a certificate "
    "(server_ca= names an issuer)"
)


class RaTls:
    """A server whose certificate has the evidence, so that no request is sent for it."""

    name: str = "ra-tls"
    where: Where = "handshake"

    def recognizes(self, host: str) -> bool:
        """Return False, whatever `host` is: the service is detected by the certificate."""
        return False

    def questions(self, nonce: bytes, model: str | None) -> tuple[Question, ...]:
        """Return no request, because the evidence is in the certificate.

        `nonce` and `model` are not used.
        """
        return ()

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of the certificate; its evidence is verified later.

        Args:
            answers: Not used: there are none.
            nonce: Not used: the evidence is older than it.
            seen: TLS peer of the connection, with the certificate; None is an error.
            model: Not used.

        Raises:
            FormatError: If certificate or evidence are malformed.
            VerificationError: If evidence is missing, or bound to a key other than the
                certificate's.
            ServiceError: If `seen` is None.
        """
        seen = self._observed(seen)
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
            not_proven=(NO_NAME,),  # the result states that the age is not shown
        )

    def _observed(self, seen: ObservedPeer | None) -> ObservedPeer:
        if seen is None:
            message = (
                f"{self.name}: no TLS certificate of the server was observed, which has the "
                'evidence; leave `where` of the service at "handshake"'
            )
            raise ServiceError(message, reason="no_attestation")
        return seen


_WHAT: Final = "ra-tls-other"
_NO_AGE: Final = "how old the evidence is: its issuer chose the certificate's dates"
_NO_LABEL: Final = (
    "that the evidence was made for TLS: it has no label, which counts if the program attests "
    "other data of its callers"
)


class OtherRaTls(RaTls):
    """A server with an RA-TLS certificate of an implementation such as Gramine or rats-tls.

    The service "auto" never selects it, because the evidence is over 32 bytes and zeros, without a
    label. If a program attests report data that its callers choose, an attacker can obtain evidence
    over the hash of their own key, and put it into a certificate of that key.
    """

    name = "ra-tls-other"

    def read(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, model: str | None
    ) -> Claims:
        """Return the claims of the certificate; its evidence is verified later.

        Args:
            answers: Not used: there are none.
            nonce: Not used: the evidence is older than it.
            seen: TLS peer of the connection, with the certificate; None is an error.
            model: Not used.

        Raises:
            FormatError: If certificate, evidence or claims are malformed.
            VerificationError: If the certificate has no evidence, or claims for a different key.
            UnsupportedError: If the evidence is of a kind that is not supported.
            ServiceError: If `seen` is None, or its key is not that of the certificate.
        """
        seen = self._observed(seen)
        found = read_interoperable(seen.certificate)
        if not hmac.compare_digest(found.spki, seen.spki):
            message = f"{_WHAT}: the certificate must have the key of the connection"
            raise ServiceError(message, reason="other_key")
        _check_kind(found)
        return Claims(
            machines=(Machine("server", found.evidence, found.report_data),),
            bindings=(Binding("ra-tls", seen.spki_sha256, "server"),),
            freshness="key possession",
            valid_until=found.valid_until,
            not_proven=(_NO_AGE, _NO_LABEL, NO_NAME),
        )


def _check_kind(found: CertificateEvidence) -> None:
    """Check that Gramine's older format has a quote of SGX: Gramine creates no other.

    Raises:
        FormatError: If the quote is malformed, or of a TD.
    """
    if found.form == "gramine" and Quote.parse(found.evidence).tee_type != 0:
        message = f"{_WHAT}: a certificate in Gramine's older format must have a quote of SGX"
        raise FormatError(message, reason="unsupported")


SERVICES: Final = (RaTls(), OtherRaTls())
"""Services of this module, for the registry."""
