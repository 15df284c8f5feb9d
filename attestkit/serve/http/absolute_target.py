"""The HTTP protocol of our listeners, where a target in absolute form says who was meant.

`GET http://evil.example/GetKey` is for evil.example, whatever `Host` says (RFC 9112, 3.2.2). Only
the path of it goes on to the application, so that its guards of who was meant get the name here.
"""

from attestkit.serve.http.protocol import HttpProtocol
from attestkit.serve.http.request_checks import with_named_host

__all__ = ["TargetProtocol"]


class TargetProtocol(HttpProtocol):
    """One connection. What is answered directly is none of this: its targets have no host."""

    headers: list[tuple[bytes, bytes]]

    def _go_through_asgi(self, fields: dict[bytes, bytes]) -> None:
        if not self.url.startswith(b"/"):
            self.headers = with_named_host(self.url, self.headers)
        super()._go_through_asgi(fields)
