"""Endpoint of a guest agent: a base URL, or the path of a UNIX socket."""

import stat
from pathlib import Path
from typing import Final, NamedTuple

from attestkit.errors import UsageError

_URL: Final = ("http://", "https://")


class Address(NamedTuple):
    """The address of an endpoint: `path` of a UNIX socket, or the parts of a URL."""

    path: str = ""  # of a UNIX socket; empty for a URL
    host: str = ""
    port: int = 0
    tls: bool = False  # whether the scheme is https
    prefix: str = ""  # path of the URL, which precedes the names of methods


def describe_wrong_file(path: str) -> str:
    """Return the error text if `path` is a directory or a regular file instead of a socket.

    Otherwise, also for the empty path of a URL, the text is empty.
    """
    try:
        mode = Path(path).stat().st_mode if path else 0
    except (OSError, ValueError):
        return ""
    if stat.S_ISDIR(mode):
        return (
            "not a socket but a directory, as a container engine creates where the host has no "
            "socket to mount; start the agent on the host, remove the directory there, and "
            "recreate the container"
        )
    if stat.S_ISREG(mode):
        return "not a socket but a file; use the socket of a running agent"
    return ""


def parse_endpoint(endpoint: str) -> Address:
    """Return the address of an endpoint: a URL `http(s)://HOST[:PORT][/PATH]`, or a path.

    Raises:
        UsageError: If the URL is invalid. Paths are not checked.
    """
    return _parse_url(endpoint) if endpoint.lower().startswith(_URL) else Address(path=endpoint)


def _parse_url(url: str) -> Address:
    from urllib.parse import urlsplit  # imported by http.client as well

    if "@" in url:  # a URL with a user may have a password: not shown
        raise UsageError("endpoint: must not have a user or @", reason="wrong_value")
    wrong = UsageError(
        f"endpoint: must be http(s)://HOST[:PORT][/PATH], without query: {printable(url)}",
        reason="wrong_value",
    )
    if not url.isascii() or not url.isprintable() or set(" ?#\\") & set(url):
        raise wrong
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise wrong from error
    if not parts.hostname or port == 0:
        raise wrong
    tls = parts.scheme == "https"
    return Address("", parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))


def printable(endpoint: str) -> str:
    """Return an endpoint for error texts, with control characters escaped."""
    return endpoint if endpoint.isprintable() else ascii(endpoint)
