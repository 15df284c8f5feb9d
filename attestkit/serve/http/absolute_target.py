"""HTTP protocol with support for request targets in absolute form.

The host of `GET http://evil.example/GetKey` takes precedence over `Host` (RFC 9112, 3.2.2). The
application gets only the path, so the host is added to the headers for its guards.
"""

from attestkit.serve.http.protocol import HttpProtocol
from attestkit.serve.http.request_checks import with_named_host

__all__ = ["TargetProtocol"]


class TargetProtocol(HttpProtocol):
    """One connection. Requests on the direct path never have a target in absolute form."""

    headers: list[tuple[bytes, bytes]]

    def _start_asgi_request(self, fields: dict[bytes, bytes]) -> None:
        if not self.url.startswith(b"/"):
            self.headers = with_named_host(self.url, self.headers)
        super()._start_asgi_request(fields)
