"""Checks of a request's header section: its size, its host (DNS rebinding), and its origin."""

import re
from collections.abc import Iterable
from socket import socket
from typing import Final

from attestkit.errors import UsageError

# DNS cannot redirect these names: browsers resolve localhost and its subdomains (RFC 6761) to the
# loopback address themselves.
_LOOPBACK: Final = re.compile(
    rb"(([a-z0-9_-]+\.)*localhost\.?|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE
)

_ABSOLUTE: Final = re.compile(rb"[a-z][a-z0-9+.-]*://([^/?#]*)", re.IGNORECASE)


def with_named_host(target: bytes, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return `headers`, with the host of a request target in absolute form as one more Host.

    That host takes precedence over `Host` (RFC 9112, 3.2.2). Both are kept, so that a guard checks
    both.
    """
    found = _ABSOLUTE.match(target)
    return headers if found is None else [*headers, (b"host", found[1])]


def has_loopback_host(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether every Host header is a loopback name, or absent (DNS-rebinding check)."""
    return all(name != b"host" or _LOOPBACK.fullmatch(value) for name, value in headers)


def refuse_other_sites(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Refuse requests of web pages of other sites, which browsers mark by header fields.

    Raises:
        UsageError: If the request has Origin, or Sec-Fetch-Site names another site.
    """
    for name, value in headers:
        if name == b"origin":
            text = "Origin header: the request comes from a web page, which is refused"
            raise UsageError(text, reason="refused_origin")
        if name == b"sec-fetch-site" and value not in {b"none", b"same-origin"}:
            text = "Sec-Fetch-Site header: the request comes from another site, which is refused"
            raise UsageError(text, reason="refused_origin")


def is_loopback(sock: socket) -> bool:
    """Return whether a listening socket is TCP on a loopback address."""
    address = sock.getsockname()
    return isinstance(address, tuple) and (
        address[0] == "::1" or address[0].removeprefix("::ffff:").startswith("127.")
    )


# Size of a request's head that arrives in pieces, and removal of its Upgrade field.

KEPT: Final = 3
"""Bytes kept of a head to find an empty line that is split between pieces."""

_BLANK: Final = b"\r\n\r\n"
_UPGRADE: Final = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


def head_size(before: bytes, data: bytes) -> int:
    """Return how many bytes of `data` belong to the head: request line, fields and empty line.

    Like the parser, it accepts only CR LF as line end (RFC 9112, section 2.2, allows a lone LF;
    section 11.2 describes the request smuggling that differing readers cause).

    Args:
        before: The last `KEPT` bytes of the earlier pieces of this head.
        data: The new piece.
    """
    at = (before + data).find(_BLANK)
    return len(data) if at < 0 else at + len(_BLANK) - len(before)


def without_upgrade(head: bytes) -> bytes:
    """Return a head without the Upgrade field, which HTTP/2-capable clients send.

    The server may ignore an upgrade (RFC 9110, section 7.8), but the parser would accept it and
    drop the body. The field name is replaced by one of the same length: no offset changes.
    """
    return _UPGRADE.sub(b"\r\nignored:", head)
