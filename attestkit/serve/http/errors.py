"""JSON encoding of errors, the same for all listeners."""

import json


def encode_error(text: str) -> bytes:
    """Return the JSON of an error, pretty-printed with two spaces."""
    return json.dumps({"error": text}, indent=2).encode("ascii")
