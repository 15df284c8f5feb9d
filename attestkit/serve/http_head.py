"""Where the head of a request ends, which may come in any pieces, and what is changed in it."""

import re
from typing import Final

__all__ = ["KEPT", "head_size", "without_upgrade"]

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
