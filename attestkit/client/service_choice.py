"""Choice of the `Service` for a server: by name, or detected (`service="auto"` of `connect`).

A service is a protocol by which servers show their evidence. A wrong detection weakens no
requirement. The module of a service is imported when it is needed.
"""

import ssl
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Final, NamedTuple

from attestkit._sanitize import one_line, shown
from attestkit.client.origin import Origin
from attestkit.client.services.service import Service
from attestkit.client.wire.tls import open_tls, tls_context
from attestkit.errors import FormatError, ServiceError, UsageError
from attestkit.ra_tls.certificate import has_evidence
from attestkit.ra_tls.interoperable_certificates import has_interoperable_evidence

# Module of each service, whose `SERVICES` has it; those with known hosts first.
_MODULES: Final = {
    "near-ai": "vllm.near_ai",
    "near-ai-direct": "vllm.near_ai",
    "tinfoil": "tinfoil.tinfoil",
    "tinfoil-bundle": "tinfoil.tinfoil",
    "redpill": "vllm.vllm_proxy",
    "venice": "vllm.vllm_proxy",
    "nano-gpt": "vllm.vllm_proxy",
    "vllm-proxy": "vllm.vllm_proxy",
    "secretvm": "secretvm",
    "chutes": "chutes",
    "aci": "aci.aci",
    "attestkit": "own_document",
    "ra-tls": "ra_tls",
    "ra-tls-other": "ra_tls",
}

OWN_DOCUMENT: Final = "attestkit"
"""Service of servers with attestkit's middleware; the one that is used if no other is detected."""

RA_TLS: Final = "ra-tls"
"""Service of a server with evidence in its certificate."""

OTHER_RA_TLS: Final = "ra-tls-other"
"""Service of a server with evidence in its certificate, in formats such as Gramine's or rats-tls's.

It is never detected: the caller has to name it.
"""


def service_names() -> tuple[str, ...]:
    """Return the names of services that `connect` takes, without "auto"."""
    return tuple(_MODULES)


@cache
def open_service(name: str) -> Service:
    """Return the service of a name such as `near-ai`; import its module.

    Raises:
        UsageError: If the name is unknown.
    """
    if name not in _MODULES:
        message = f"service: must be one of {', '.join(_MODULES)}, or auto, not {shown(name)}"
        raise UsageError(message, reason="unknown_name")
    module = import_module(f"attestkit.client.services.{_MODULES[name]}")
    found: Service = next(one for one in module.SERVICES if one.name == name)
    return found


def find_service(host: str) -> Service | None:
    """Return the service whose provider is known to run at a host name; None if there is none."""
    services = map(open_service, _MODULES)
    return next((service for service in services if service.recognizes(host)), None)


AUTO = "auto"


class Dialing(NamedTuple):
    """Parameters of the connections to a server.

    Attributes:
        origin: Host and port of the server.
        server_ca: CA certificates in PEM, to one of which the server's certificate chain must lead;
            None: those of the system.
        proxy: URL of an HTTP proxy for tunnels (CONNECT); None: direct connections.
        seconds: Time limit for connection and handshake.
    """

    origin: Origin
    server_ca: str | bytes | None
    proxy: str | None
    seconds: float

    def context(self, service: Service) -> ssl.SSLContext:
        """Return the TLS context for a service.

        It verifies the server's name and certificate chain, but not for services of RA-TLS.

        Raises:
            FormatError: As `tls_context`, if `server_ca` is malformed.
        """
        return tls_context(self.server_ca, webpki=service.where != "handshake")

    def open(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Return a TLS connection to the server after its handshake; errors as `open_tls`."""
        origin = self.origin
        return open_tls(origin.host, origin.port, context, proxy=self.proxy, seconds=self.seconds)


def choose_service(name: str | Service, dialing: Dialing) -> Service:
    """Return the service of a name, or detect it for "auto"; a Service is returned as it is.

    Detected are, in this order: the service of a known host name; RA-TLS if the server's
    certificate has evidence, for which a connection is opened; otherwise attestkit's own service.

    Raises:
        UsageError: If the name is unknown, or the URL of the proxy is not valid.
        FormatError: If `server_ca` is not PEM, or a certificate in it is malformed.
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
    """Connect again without WebPKI; return RA-TLS if the server's certificate has evidence.

    Raises:
        ServiceError: If it has none (reason `unknown_service`); `refused`, the error of WebPKI, is
            its cause.
    """
    with dialing.open(tls_context(webpki=False)) as connection:
        certificate = connection.getpeercert(binary_form=True) or b""
    if _has_evidence(certificate):
        return open_service(RA_TLS)
    if _has_evidence(certificate, has_interoperable_evidence):
        message = (
            f"{shown(dialing.origin.authority)}: its certificate has evidence of an RA-TLS "
            f'implementation that is not dstack\'s; pass service="{OTHER_RA_TLS}"'
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
