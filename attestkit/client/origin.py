"""The server of an endpoint: host, port and path of its `https://` URL."""

import re
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from attestkit._argument_checks import wrong_type
from attestkit._formats.host_names import is_host
from attestkit._sanitize import shown
from attestkit._system.bounded_http import host_header
from attestkit.errors import UsageError

MAX_URL: Final = 2048
"""Maximum number of characters of a URL."""

_PRINTABLE: Final = re.compile(r"[!-~]+")
_HTTPS_PORT: Final = 443


class Origin(NamedTuple):
    """Host and port of an https URL, and its path, below which the caller's requests are."""

    host: str  # without the brackets of an IPv6 address, in lower case
    port: int
    path: str = ""  # without a final slash

    @property
    def authority(self) -> str:
        """Host and port as in a URL, without the port 443: the value of the header Host."""
        return host_header(self.host, self.port).removesuffix(f":{_HTTPS_PORT}")

    @property
    def url(self) -> str:
        """The origin as a URL, without a path."""
        return f"https://{self.authority}"

    @classmethod
    def of(cls, url: str) -> "Origin":
        """Return host, port and path of a URL such as `https://host:8443/api`.

        Raises:
            UsageError: If it is not an https URL with a host (reason `plain_http` for http://), has
                a user, query or fragment, is not printable ASCII, or is over 2,048 characters. The
                message never shows a URL with a user, which may have a password.
        """
        if not isinstance(url, str):
            raise wrong_type("url", "text", url)
        if len(url) > MAX_URL:
            raise UsageError(f"url: {len(url)} characters, at most {MAX_URL}", reason="too_large")
        if "@" in url:
            raise UsageError("url: must not have a user or `@`", reason="wrong_value")
        subject = f"url {shown(url)}"
        if not _PRINTABLE.fullmatch(url) or "\\" in url:
            message = f"{subject}: must be an https URL in ASCII without spaces and backslashes"
            raise UsageError(message, reason="encoding")
        if url.lower().startswith("http://"):
            message = f"{subject}: http:// has no TLS key that evidence could name; use https://"
            raise UsageError(message, reason="plain_http")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            message = f"{subject}: must have a valid host, and a port of 1 to 65535 or none"
            raise UsageError(message, reason="wrong_value") from error
        if parts.scheme != "https" or "?" in url or "#" in url:
            message = f"{subject}: must be an https URL without query and fragment"
            raise UsageError(message, reason="wrong_value")
        if (
            not is_host(parts.netloc, host.removesuffix("."))
            or port == 0
            or parts.netloc.endswith(":")
        ):
            message = f"{subject}: must have a valid host, and a port of 1 to 65535 or none"
            raise UsageError(message, reason="wrong_value")
        return cls(host, port or _HTTPS_PORT, parts.path.rstrip("/"))


def origin_of_question(text: str, own: Origin) -> Origin:
    """Return the server of a request for evidence.

    Args:
        text: An https URL, or `:PORT` for another port on the host of `own`.
        own: The server of the endpoint.

    Raises:
        UsageError: As `Origin.of`.
    """
    if not text.startswith(":"):
        return Origin.of(text)
    host = f"[{own.host}]" if ":" in own.host else own.host
    return Origin.of(f"https://{host}{text}")
