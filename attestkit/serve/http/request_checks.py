"""What is read of a request's head first: its size, and whether it names this machine."""

import re
from collections.abc import Iterable
from socket import socket
from typing import Final

__all__ = [
    "KEPT",
    "head_size",
    "is_called_as_ours",
    "is_loopback",
    "with_named_host",
    "without_upgrade",
]

# Names that no server of names can lead here: browsers know themselves that localhost, and all that
# ends in it (RFC 6761), is this machine.
_LOOPBACK: Final = re.compile(
    rb"(([a-z0-9_-]+\.)*localhost\.?|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE
)

_ABSOLUTE: Final = re.compile(rb"[a-z][a-z0-9+.-]*://([^/?#]*)", re.IGNORECASE)


def with_named_host(target: bytes, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return headers with the host that a target in absolute form names (RFC 9112, 3.2.2).

    That one decides who was meant, not `Host`. It stands beside what came, which a guard still
    refuses if that is another machine's name.
    """
    found = _ABSOLUTE.match(target)
    return headers if found is None else [*headers, (b"host", found[1])]


def is_called_as_ours(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Tell whether a request names this machine as one does from itself each time, or never.

    A page whose own name was led here (DNS rebinding) sends that name as `Host`.
    """
    return all(name != b"host" or _LOOPBACK.fullmatch(value) for name, value in headers)


def is_loopback(sock: socket) -> bool:
    """Tell whether a listening socket is TCP, and only this machine gets to it."""
    where = sock.getsockname()
    return isinstance(where, tuple) and (
        where[0] == "::1" or where[0].removeprefix("::ffff:").startswith("127.")
    )


# Where the head of a request ends, which may come in any pieces, and what is changed in it.

KEPT: Final = 3
"""Bytes of a head that the next piece is looked at with: the blank line may be cut anywhere."""

_BLANK: Final = b"\r\n\r\n"
_UPGRADE: Final = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


def head_size(before: bytes, data: bytes) -> int:
    """Return how many bytes of a piece are a head's, the blank line among them.

    It ends where the parser ends it, which takes no line that ends otherwise than with CR LF (RFC
    9112, 2.2, allows a lone LF; 11.2 tells what comes of two readers that do not agree).

    Args:
        before: The last `KEPT` bytes of the pieces of this head that came before.
        data: What came now.
    """
    at = (before + data).find(_BLANK)
    return len(data) if at < 0 else at + len(_BLANK) - len(before)


def without_upgrade(head: bytes) -> bytes:
    """Return a head that no longer asks for another protocol, as clients of HTTP/2 do.

    Such a wish may be ignored, but the parser would take it for granted and drop the body. The name
    is replaced by one of its length: whatever is changed here, no other byte is at another place.
    """
    return _UPGRADE.sub(b"\r\nignored:", head)
