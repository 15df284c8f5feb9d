"""RATS Conceptual Message Wrapper in JSON: records are arrays, collections are objects.

The message is base64url without padding (RFC 4648, section 5), in its one canonical spelling.
"""

import binascii
import json

from attestkit._formats.strict_json import decode_strictly
from attestkit._sanitize import shown
from attestkit.attestation.cmw.record import (
    KIND,
    Budget,
    Cmw,
    Collection,
    Label,
    Record,
    checked_collection,
    checked_record,
)
from attestkit.errors import FormatError, UsageError

__all__ = ["from_base64url", "read_json", "to_base64url", "write_json"]

_TO_URL = bytes.maketrans(b"+/", b"-_")
# The standard alphabet's own two must not pass for these, so they become what no alphabet has.
_FROM_URL = bytes.maketrans(b"-_+/", b"+/!!")


def read_json(data: bytes) -> Cmw:
    """Read one CMW in JSON, UTF-8: a record or a collection.

    Raises:
        FormatError: It is no JSON, has a name twice in one object, or breaks the draft or a limit,
            with its label.
    """
    return _read(decode_strictly(data), Budget(), 0, "CMW")


def write_json(message: Cmw) -> bytes:
    """Return a record or a collection in JSON, compact.

    Raises:
        UsageError: It breaks the draft or a limit, or a label is a number, which JSON cannot have.
    """
    try:
        return json.dumps(_tree(message, Budget(), 0), separators=(",", ":")).encode()
    except FormatError as error:
        raise UsageError(error.message) from error


def to_base64url(value: bytes) -> str:
    """Return `value` in base64url without padding."""
    return binascii.b2a_base64(value, newline=False).translate(_TO_URL).rstrip(b"=").decode()


def from_base64url(text: object, where: str) -> bytes:
    """Return the bytes of base64url text without padding.

    Raises:
        FormatError: It is no such text, or has bits behind the last byte; the text names `where`.
    """
    if isinstance(text, str) and text.isascii() and "=" not in text:
        coded = text.encode().translate(_FROM_URL)
        try:
            found = binascii.a2b_base64(coded + b"=" * (-len(coded) % 4))
        except ValueError:
            found = b""
        # What Python passes over, and bits behind the last byte, show here.
        if to_base64url(found) == text:
            return found
    raise FormatError(f"{where}: the value is no base64url text without padding")


def _read(value: object, budget: Budget, depth: int, where: str) -> Cmw:
    if isinstance(value, dict):
        budget.spend(depth, collection=True, where=where)
        named = KIND in value
        kind = value.pop(KIND, None)
        if named and kind is None:
            raise FormatError(f"{where}: {KIND} is no URI or OID")
        entries: dict[Label, Cmw] = {
            label: _read(entry, budget, depth + 1, shown(label)) for label, entry in value.items()
        }
        return checked_collection(entries, kind, where)
    budget.spend(depth, collection=False, where=where)
    if not isinstance(value, list) or len(value) not in {2, 3}:
        raise FormatError(f"{where}: a CMW record is an array of 2 or 3 items")
    media_type, text, *ind = value
    if ind == [None]:
        raise FormatError(f"{where}: ind is null")
    return checked_record(media_type, from_base64url(text, where), ind[0] if ind else None, where)


def _tree(message: Cmw, budget: Budget, depth: int) -> object:
    budget.spend(depth, collection=isinstance(message, Collection), where="CMW")
    if isinstance(message, Record):
        media_type, value, ind = checked_record(*message, "CMW")
        found: list[object] = [media_type, to_base64url(value)]
        return found if ind is None else [*found, ind]
    checked_collection(message.entries, message.kind, "CMW")
    if KIND in message.entries or any(not isinstance(label, str) for label in message.entries):
        raise UsageError(f"labels in JSON are text, and none of them is {KIND}")
    tree: dict[Label, object] = {} if message.kind is None else {KIND: message.kind}
    for label, entry in message.entries.items():
        tree[label] = _tree(entry, budget, depth + 1)
    return tree
