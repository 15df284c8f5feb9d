"""Errors as the JSON that every listener answers with."""

import json

__all__ = ["encode_error"]


def encode_error(text: str) -> bytes:
    """Return the JSON of an error, pretty-printed with two spaces."""
    return json.dumps({"error": text}, indent=2).encode("ascii")
