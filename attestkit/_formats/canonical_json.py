"""JSON in canonical form (JCS, RFC 8785) of values without fractional numbers.

Signed or hashed documents are serialized anew in this form, so that the order of members and white
space do not count. Fractions are refused, because their form depends on ECMAScript's algorithm.
"""

import json
from typing import Final

from attestkit._formats.strict_json import MAX_DEPTH, has_surrogate
from attestkit.errors import FormatError

MAX_NUMBER: Final = (1 << 53) - 1
"""Largest absolute value of a number: all parsers agree on it (RFC 8785, appendix D)."""


def canonical_json(value: object, what: str = "value") -> bytes:
    """Return the canonical form of a value, in UTF-8.

    Args:
        value: Text without unpaired surrogates, an integer, a boolean, None, or lists, tuples and
            dictionaries of them. Names are ASCII: RFC 8785 sorts others by UTF-16.
        what: Name of the value, with which errors begin.

    Raises:
        FormatError: If the value has another type, an integer of 2^53 or more, a name that is not
            ASCII, an unpaired surrogate, or nests over 200 levels.
    """
    _check(value, what, 0)
    # Python escapes as RFC 8785 does: the short forms, and control characters in lower-case hex.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _check(value: object, what: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise FormatError(f"{what}: nests over {MAX_DEPTH} levels", reason="too_deep")
    if isinstance(value, dict):
        if not all(isinstance(name, str) and name.isascii() for name in value):
            raise FormatError(f"{what}: names must be ASCII text", reason="encoding")
        for part in value.values():
            _check(part, what, depth + 1)
    elif isinstance(value, (list, tuple)):
        for part in value:
            _check(part, what, depth + 1)
    else:
        _check_scalar(value, what)


def _check_scalar(value: object, what: str) -> None:
    if isinstance(value, str):
        if has_surrogate(value):
            raise FormatError(f"{what}: unpaired surrogate in text", reason="encoding")
    elif value is not None and not isinstance(value, int):
        message = f"{what}: must have only text, whole numbers, booleans, null, lists and objects"
        raise FormatError(message, reason="wrong_type")
    elif value is not None and abs(value) > MAX_NUMBER:
        raise FormatError(f"{what}: numbers must be between -2^53 and 2^53", reason="wrong_value")
