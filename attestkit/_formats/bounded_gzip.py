"""Decompress one gzip stream (RFC 1952) to a bounded size."""

import zlib
from typing import Final

from attestkit.errors import FormatError

_WINDOW: Final = 16 + zlib.MAX_WBITS  # gzip only, no bare zlib stream


def gunzip(data: bytes, most: int, what: str) -> bytes:
    """Return the content of a complete gzip stream, at most `most` bytes.

    Args:
        data: The stream, with nothing after it.
        most: Maximum size of the content.
        what: Name of the stream, with which errors begin.

    Raises:
        FormatError: If the stream is malformed, truncated or followed by other data, or its
            content exceeds `most`.
    """
    stream = zlib.decompressobj(_WINDOW)
    try:
        found = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise FormatError(f"{what}: malformed gzip", reason="syntax") from error
    if len(found) > most:
        raise FormatError(f"{what} too large (>{most} bytes)", reason="too_large")
    if not stream.eof:
        raise FormatError(f"{what}: truncated gzip", reason="truncated")
    if stream.unused_data:
        raise FormatError(f"{what}: data follow the gzip stream", reason="trailing_data")
    return found
