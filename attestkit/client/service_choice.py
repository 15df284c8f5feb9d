"""Choice of the `Service` for a server: by name, or detected (`service="auto"` of `connect`).

A wrong detection weakens no requirement. The module of a service is imported when it is needed.
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
"""Service that any other server may be."""

RA_TLS: Final = "ra-tls"
"""Service of a server with evidence in its certificate."""

OTHER_RA_TLS: Final = "ra-tls-other"
"""The same in the forms of other makers; the caller has to name it."""


def service_names() -> tuple[str, ...]:
    """Return the names of all services."""
    return tuple(_MODULES)


@cache
def open_service(name: str) -> Service:
    """Return a service.

    Raises:
        UsageError: If the name is unknown.
    """
    if name not in _MODULES:
        message = f"service: {shown(name)} is unknown; known are {', '.join(_MODULES)}, and auto"
        raise UsageError(message, reason="unknown_name")
    module = import_module(f"attestkit.client.services.{_MODULES[name]}")
    found: Service = next(one for one in module.SERVICES if one.name == name)
    return found


def find_service(host: str) -> Service | None:
    """Return the service that a host is known to be of; None if it is unknown."""
    services = map(open_service, _MODULES)
    return next((service for service in services if service.recognizes(host)), None)


AUTO = "auto"


class Dialing(NamedTuple):
    """Parameters of the connections to a server.

    Attributes:
        origin: Host and port of the server.
        server_ca: CA certificates in PEM that its chain must lead to; None: those of the system.
        proxy: URL of an HTTP proxy for tunnels; None: direct connections.
        seconds: Time limit for connection and handshake.
    """

    origin: Origin
    server_ca: str | bytes | None
    proxy: str | None
    seconds: float

    def context(self, service: Service) -> ssl.SSLContext:
        """Return the TLS context for a service; for RA-TLS it does not verify name and chain."""
        return tls_context(self.server_ca, webpki=service.where != "handshake")

    def open(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Open a connection, as `open_tls` does."""
        origin = self.origin
        return open_tls(origin.host, origin.port, context, proxy=self.proxy, seconds=self.seconds)


def choose_service(name: str | Service, dialing: Dialing) -> Service:
    """Return the service of a name, or detect it for "auto".

    In this order: the service of a known host; RA-TLS if the certificate has evidence; otherwise
    the document of attestkit's own servers.

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
    """Return RA-TLS if a certificate that WebPKI rejects has evidence; else raise ServiceError."""
    with dialing.open(tls_context(webpki=False)) as connection:
        certificate = connection.getpeercert(binary_form=True) or b""
    if _has_evidence(certificate):
        return open_service(RA_TLS)
    if _has_evidence(certificate, has_interoperable_evidence):
        message = (
            f"{shown(dialing.origin.authority)}: its certificate has evidence of another RA-TLS "
            f'implementation; pass service="{OTHER_RA_TLS}"'
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
