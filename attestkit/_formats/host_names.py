"""Hosts of URLs: DNS names, IPv4 addresses, and IPv6 addresses in brackets; URLs of proxies."""

import re
from base64 import b64encode
from ipaddress import IPv6Address
from typing import Final
from urllib.parse import unquote, urlsplit

from attestkit._argument_checks import wrong_type
from attestkit._system.bounded_http import Proxy
from attestkit.errors import UsageError

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")


def is_host(netloc: str, host: str) -> bool:
    """Return whether the host of a URL is a name, or an address without a zone.

    Args:
        netloc: Host as in the URL, with brackets and port.
        host: Host without them, as by `urllib.parse.urlsplit`; a name has no final dot.
    """
    if ("[" in netloc) is not (":" in host):
        return False
    if ":" not in host:
        return _NAME.fullmatch(host) is not None
    try:
        return "%" not in host and bool(IPv6Address(host))  # X.509 has no zones
    except ValueError:
        return False


def read_proxy(url: str) -> Proxy:
    """Return host and port of an HTTP proxy, and headers with its user and password, if any.

    Args:
        url: URL of the proxy, such as `http://user:password@host:3128`; the default port is 80.

    Raises:
        UsageError: If `url` is not text, not valid, or of another scheme than http.
    """
    if not isinstance(url, str):
        raise wrong_type("proxy", "text", url)
    message = "proxy: must be http://HOST:PORT"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 80
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
    except ValueError:
        # Its text may have a part of the password.
        raise UsageError(message, reason="wrong_value") from None
    netloc = parts.netloc.rpartition("@")[2]
    if parts.scheme != "http" or not is_host(netloc, host.removesuffix(".")):
        raise UsageError(message, reason="wrong_value")
    if parts.username is None:
        return Proxy(host, port)
    return Proxy(host, port, {"Proxy-Authorization": f"Basic {b64encode(user).decode()}"})
