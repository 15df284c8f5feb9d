"""RA-TLS: certificates that contain evidence, and TLS connections that verify it.

The report data of the evidence are a hash of the certificate's public key (content type
`ratls-cert` of the dstack guest agent). So a TLS peer that proves possession of the private key is
the attested TD. Extensions with app id and app info must agree with the evidence; name, validity
and other extensions are claims of the issuer, which a certificate chain may authenticate.

`issue`, `read` and `verify` are for certificates. The connections of `server_context` and
`client_context` verify the peer's evidence before they exchange application data; `peer` returns
the result. `HTTPTransport` and `AsyncHTTPTransport` are for httpx, which they import.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names
from attestkit.ra_tls.certificate import (
    MAX_LIFETIME,
    OID_APP_ID,
    OID_APP_INFO,
    OID_ATTESTATION,
    OID_CERT_USAGE,
    OID_EVENT_LOG,
    OID_TDX_QUOTE,
    read,
    verify,
)
from attestkit.ra_tls.connection import PeerRefusedError, peer
from attestkit.ra_tls.contexts import client_context, server_context
from attestkit.ra_tls.issuance import Issued, issue

if TYPE_CHECKING:
    from attestkit.ra_tls.http_transports import AsyncHTTPTransport, HTTPTransport

__all__ = [
    "MAX_LIFETIME",
    "OID_APP_ID",
    "OID_APP_INFO",
    "OID_ATTESTATION",
    "OID_CERT_USAGE",
    "OID_EVENT_LOG",
    "OID_TDX_QUOTE",
    "AsyncHTTPTransport",
    "HTTPTransport",
    "Issued",
    "PeerRefusedError",
    "client_context",
    "issue",
    "peer",
    "read",
    "server_context",
    "verify",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__, {"http_transports": ["AsyncHTTPTransport", "HTTPTransport"]}
    )
