"""JSON inside evidence, read strictly: hostile text raises FormatError and nothing else."""

import binascii
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from attestkit import _native
from attestkit._json import check_depth
from attestkit.errors import FormatError

__all__ = ["from_base64", "from_hex", "hex_field", "number_field", "read", "read_object", "string"]


def read(text: str | bytes, what: str) -> object:
    """Return what `text` holds; `what` names it in errors.

    Raises:
        FormatError: It is no JSON, nests too deeply, has NaN or infinity, a key twice in one
            object, or half a surrogate pair in a string.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        else:
            text.encode()
        check_depth(text)
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if "\\u" in text:  # half a surrogate pair, escaped, would come out as text without UTF-8
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not well-formed JSON") from error
    return found


def read_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Return the object that `text` holds; like `read`, and anything but an object is refused."""
    found = read(text, what)
    if not isinstance(found, dict):
        raise FormatError(f"{what} is not a JSON object")
    return found


def from_hex(value: object, what: str, size: int | None = None) -> bytes:
    """Return the bytes of hex text without prefix or spaces, exactly `size` of them if given."""
    if not isinstance(value, str):
        raise FormatError(f"{what} is not hex text")
    found = _native.unhex(value)
    if found is None:
        raise FormatError(f"{what} is not hex text")
    if size is not None and len(found) != size:
        raise FormatError(f"{what} must have {size} bytes, not {len(found)}")
    return found


def from_base64(value: object, what: str) -> bytes:
    """Return the bytes of standard padded base64 text."""
    if not isinstance(value, str):
        raise FormatError(f"{what} is not base64 text")
    try:
        # Not strict_mode, which is new in Python 3.11: decode and compare does the same.
        found = binascii.a2b_base64(value)
    except ValueError as error:
        raise FormatError(f"{what} is not base64 text") from error
    if binascii.b2a_base64(found, newline=False) != value.encode():
        raise FormatError(f"{what} is not base64 text")
    return found


def string(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """Return the text under `name`; where it is missing or null, `default` if that is given."""
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise FormatError(f"{name} is not a string")
    return value


def hex_field(fields: Mapping[str, Any], name: str) -> bytes:
    """Return the bytes of the hex text under `name`; none where it is missing or null."""
    return from_hex(string(fields, name, ""), name)


def number_field(
    fields: Mapping[str, Any], name: str, bits: int, default: int | None = None
) -> int:
    """Return the number under `name`, not negative and below 2**`bits`."""
    value = fields.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << bits:
        raise FormatError(f"{name} is not a number of {bits} bits")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
