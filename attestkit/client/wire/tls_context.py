"""SSL contexts of clients that prove their servers: TLS 1.3, HTTP/1.1, no session resumption.

Neither SSLKEYLOGFILE nor the variables of HTTP clients that name CAs have an effect; SSL_CERT_FILE
and SSL_CERT_DIR, which OpenSSL reads itself, do.
"""

import ssl
from typing import Final

from attestkit._argument_checks import wrong_type
from attestkit.ra_tls.contexts import load_authorities

_OPTIONS: Final = ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def tls_context(server_ca: str | bytes | None = None, *, webpki: bool = True) -> ssl.SSLContext:
    """Return a client's context.

    Args:
        server_ca: CA certificates in PEM; the server's certificate chain must lead to one of them.
            None: those of the system, or without `webpki` any chain.
        webpki: Whether the server's name and chain are verified; off for RA-TLS alone, whose
            certificates are self-issued.

    Raises:
        FormatError: If `server_ca` is not PEM.
    """
    # Not create_default_context, which writes keys to SSLKEYLOGFILE.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= _OPTIONS
    # Python 3.11.2 sets it with OpenSSL 3, and then a truncated stream ends in order (gh-95494).
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    context.set_alpn_protocols(["http/1.1"])
    if not webpki:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if server_ca is not None:
        load_authorities(context, server_ca)
    elif webpki:
        _load_system_authorities(context)
    return context


def _load_system_authorities(context: ssl.SSLContext) -> None:
    paths = ssl.get_default_verify_paths()
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if not (paths.cafile or paths.capath or context.get_ca_certs()):
        try:
            import certifi  # lazy: of httpx; for systems whose OpenSSL knows no CAs
        except ImportError:
            return  # each server is refused
        context.load_verify_locations(certifi.where())


def require_plain_context(context: object) -> None:
    """Raise UsageError unless this is a context whose connections prove nothing by themselves."""
    if not isinstance(context, ssl.SSLContext) or context.sslsocket_class is not ssl.SSLSocket:
        raise wrong_type("context", "a context of tls_context", context)
