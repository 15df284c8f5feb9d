"""Names that this machine has for itself, and who may call it by others."""

import re
from collections.abc import Iterable
from socket import socket
from typing import Final

__all__ = ["is_called_as_ours", "is_loopback", "with_named_host"]

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
