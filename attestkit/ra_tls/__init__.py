"""TLS between TDs: certificates that carry evidence, and connections that judge it.

Whoever speaks TLS with such a certificate's key speaks with the TD. The evidence's report data is a
hash over the certificate's public key (content type `ratls-cert` of the dstack guest agent). It
proves the key and nothing else: names, validity and the other extensions are words of the issuer,
to be trusted through the chain alone.

`issue` and `read` make and open certificates, `verify` judges one, `server_context` and
`client_context` judge the other side of every connection before it can say anything, and `peer`
tells who that is.
"""

from attestkit.ra_tls.certificate import (
    OID_APP_ID,
    OID_APP_INFO,
    OID_ATTESTATION,
    OID_CERT_USAGE,
    OID_EVENT_LOG,
    OID_TDX_QUOTE,
    Issued,
    issue,
    read,
    verify,
)
from attestkit.ra_tls.connection import PeerRefusedError, peer
from attestkit.ra_tls.contexts import client_context, server_context

__all__ = [
    "OID_APP_ID",
    "OID_APP_INFO",
    "OID_ATTESTATION",
    "OID_CERT_USAGE",
    "OID_EVENT_LOG",
    "OID_TDX_QUOTE",
    "Issued",
    "PeerRefusedError",
    "client_context",
    "issue",
    "peer",
    "read",
    "server_context",
    "verify",
]
