"""Check that a request is for the one server that a prover proves."""

from typing import Final

from attestkit._sanitize import one_line
from attestkit.client.wire.steps import ConnectionProver
from attestkit.errors import ServiceError, UsageError

MAX_CONNECTIONS: Final = 16
"""Connections that are opened for one request, while servers close them after the evidence."""


def check_origin(prover: ConnectionProver, scheme: str, host: str, port: int | None) -> None:
    """Check scheme, host and port of a request's URL; HTTP clients follow redirects with them.

    Args:
        prover: Prover of the server.
        scheme: Scheme of the URL.
        host: Its host in ASCII, without brackets.
        port: Its port; None: that of the scheme.

    Raises:
        UsageError: If the URL is not `https://` (reason `plain_http`).
        ServiceError: If it is of another server (reason `other_origin`).
    """
    if scheme != "https":
        message = f"URL: {one_line(scheme, 20)}:// is not attested; use https://"
        raise UsageError(message, reason="plain_http")
    port = 443 if port is None else port
    if (host.lower(), port) != (prover.host.lower(), prover.port):
        message = (
            f"request to https://{one_line(host, 100)}:{port}: only {prover.host}:{prover.port} "
            "is proven here; connect to the other server, with a policy of its own"
        )
        raise ServiceError(message, reason="other_origin")


def no_connection(prover: ConnectionProver) -> ServiceError:
    """Return the error for a server that keeps no connection."""
    message = (
        f"{prover.host}:{prover.port}: no connection could be kept after its evidence, "
        f"{MAX_CONNECTIONS} in a row"
    )
    return ServiceError(message, reason="connection")
