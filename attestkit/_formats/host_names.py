"""Hosts of URLs: DNS names, IPv4 addresses, and IPv6 addresses in brackets."""

import re
from ipaddress import IPv6Address
from typing import Final

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
