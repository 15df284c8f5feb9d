"""Transports of httpx that send requests over attested TLS only.

```python
context = ra_tls.client_context(verifier)
with httpx.Client(transport=ra_tls.HTTPTransport(context)) as client:
    client.get("https://10.0.0.7:8443/")
```

With `httpx.Client(verify=context)` a URL of `http://`, also of a redirect, is requested without TLS
and without verification. These transports refuse it, and a client with a transport ignores the
proxies of the environment. Do not pass `mounts` or `proxy` to the client, which replace them.
"""

import ssl
from typing import Any

from attestkit._argument_checks import needs_extra, wrong_type
from attestkit.errors import UsageError
from attestkit.ra_tls.connection import AttestedSocket

with needs_extra("HTTPTransport", "client"):
    import httpx


class HTTPTransport(httpx.HTTPTransport):
    """A transport for `httpx.Client` that verifies a server's evidence before it sends a request.

    Args:
        context: Context of `client_context`.
        limits: Limits of the connection pool; None: httpx's defaults.

    Raises:
        UsageError: If the context is not of `client_context`; from a request, if its URL is not
            `https://` (reason `plain_http`).
    """

    def __init__(self, context: ssl.SSLContext, *, limits: httpx.Limits | None = None) -> None:
        super().__init__(**_options(context, limits))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request after the server is verified; UsageError unless its URL is https."""
        _require_https(request)
        return super().handle_request(request)


class AsyncHTTPTransport(httpx.AsyncHTTPTransport):
    """A transport for `httpx.AsyncClient` that verifies a server's evidence before a request.

    `context` is one of `client_context`, `limits` those of the connection pool, None httpx's
    defaults. Errors are those of `HTTPTransport`.
    """

    def __init__(self, context: ssl.SSLContext, *, limits: httpx.Limits | None = None) -> None:
        super().__init__(**_options(context, limits))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request after the server is verified; UsageError unless its URL is https."""
        _require_https(request)
        return await super().handle_async_request(request)


def _options(context: object, limits: httpx.Limits | None) -> dict[str, Any]:
    """Return the options of httpx's transport; `limits` None is httpx's default.

    Raises:
        UsageError: If `context` is not one of `client_context`, which alone verifies evidence.
    """
    if not (
        isinstance(context, ssl.SSLContext)
        and context.protocol == ssl.PROTOCOL_TLS_CLIENT
        and issubclass(context.sslsocket_class, AttestedSocket)
    ):
        raise wrong_type("context", "a context of ra_tls.client_context", context)
    options: dict[str, Any] = {"verify": context, "trust_env": False}
    return options if limits is None else {**options, "limits": limits}


def _require_https(request: httpx.Request) -> None:
    if request.url.scheme != "https":
        message = f"URL: scheme must be https, not {request.url.scheme}"
        raise UsageError(message, reason="plain_http")
