"""Which service a server is: `service="auto"` of `connect`; a guess weakens no requirement."""

import ssl
from collections.abc import Callable
from typing import NamedTuple

from attestkit._sanitize import one_line, shown
from attestkit.client.origin import Origin
from attestkit.client.services.registry import (
    OTHER_RA_TLS,
    OWN_DOCUMENT,
    RA_TLS,
    find_service,
    open_service,
)
from attestkit.client.services.service import Service
from attestkit.client.wire.tls import open_tls, tls_context
from attestkit.errors import FormatError, ServiceError
from attestkit.ra_tls.certificate import has_evidence
from attestkit.ra_tls.other_certificates import has_other_evidence

AUTO = "auto"


class Dialing(NamedTuple):
    """Parameters of the connections to a server."""

    origin: Origin
    server_ca: str | bytes | None
    proxy: str | None
    seconds: float

    def context(self, service: Service) -> ssl.SSLContext:
        """Return the TLS context for a service: without WebPKI for RA-TLS alone."""
        return tls_context(self.server_ca, webpki=service.where != "handshake")

    def open(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Open a connection, as `open_tls` does."""
        origin = self.origin
        return open_tls(origin.host, origin.port, context, proxy=self.proxy, seconds=self.seconds)


def choose_service(name: str | Service, dialing: Dialing) -> Service:
    """Return the service of a name, or find out which it is.

    A known host names its service; else the certificate may have evidence; else the server should
    have attestkit's own document.

    Raises:
        UsageError: If the name is unknown.
        ServiceError: If the connection fails, or the certificate is not accepted and has no
            evidence (reason `unknown_service`).
    """
    if not isinstance(name, str):
        return name
    if name != AUTO:
        return open_service(name)
    if (known := find_service(dialing.origin.host)) is not None:
        return known
    try:
        with dialing.open(tls_context(dialing.server_ca)) as connection:
            certificate = connection.getpeercert(binary_form=True) or b""
    except ssl.SSLCertVerificationError as error:
        return _self_issued(dialing, error)
    return open_service(RA_TLS if _has_evidence(certificate) else OWN_DOCUMENT)


def _self_issued(dialing: Dialing, refused: ssl.SSLCertVerificationError) -> Service:
    """Return RA-TLS if a certificate that WebPKI does not accept has evidence."""
    with dialing.open(tls_context(webpki=False)) as connection:
        certificate = connection.getpeercert(binary_form=True) or b""
    if _has_evidence(certificate):
        return open_service(RA_TLS)
    if _has_evidence(certificate, has_other_evidence):
        message = (
            f"{shown(dialing.origin.authority)}: its certificate has evidence in a form of another "
            f'maker; pass service="{OTHER_RA_TLS}"'
        )
        raise ServiceError(message, reason="unknown_service") from refused
    message = (
        f"{shown(dialing.origin.authority)}: its certificate is not accepted "
        f"({one_line(refused.verify_message, 100)}) and has no evidence; pass server_ca= with the "
        "CA of the server, in PEM"
    )
    raise ServiceError(message, reason="unknown_service") from refused


def _has_evidence(certificate: bytes, recognizes: Callable[[bytes], bool] = has_evidence) -> bool:
    try:
        return recognizes(certificate)
    except FormatError:
        return False
