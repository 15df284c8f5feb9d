"""RATS Conceptual Message Wrapper in JSON: records are arrays, collections are objects.

A message is canonical base64url without padding (RFC 4648, section 5).
"""

import json

from attestkit._formats.base64url import from_base64url, to_base64url
from attestkit._formats.strict_json import decode_strictly
from attestkit._sanitize import shown
from attestkit.attestation.cmw.record import (
    KIND,
    Budget,
    Cmw,
    Collection,
    Label,
    Record,
    make_collection,
    make_record,
    usage_error,
)
from attestkit.errors import FormatError, UsageError


def read_json(data: bytes) -> Cmw:
    """Decode a CMW in JSON: a record or a collection.

    Raises:
        FormatError: If the JSON is malformed or has duplicate keys, or the CMW is not valid or
            exceeds a limit. The message begins with the label of the record or collection.
    """
    return _read(decode_strictly(data), Budget(), 0, "CMW")


def write_json(message: Cmw) -> bytes:
    """Encode a record or a collection in compact JSON.

    Raises:
        UsageError: If the message is not valid, exceeds a limit of the decoder, or has an integer
            label.
    """
    try:
        return json.dumps(_tree(message, Budget(), 0), separators=(",", ":")).encode()
    except FormatError as error:
        raise usage_error(error) from error


def _read(value: object, budget: Budget, depth: int, where: str) -> Cmw:
    if isinstance(value, dict):
        budget.spend(depth, collection=True, where=where)
        named = KIND in value
        kind = value.pop(KIND, None)
        if named and kind is None:
            raise FormatError(f"{where}: {KIND}: must be a URI or an OID", reason="wrong_value")
        entries: dict[Label, Cmw] = {
            label: _read(entry, budget, depth + 1, shown(label)) for label, entry in value.items()
        }
        return make_collection(entries, kind, where)
    budget.spend(depth, collection=False, where=where)
    if not isinstance(value, list) or len(value) not in {2, 3}:
        message = f"{where}: a CMW record must be an array of 2 or 3 items"
        raise FormatError(message, reason="wrong_size" if isinstance(value, list) else "wrong_type")
    media_type, text, *ind = value
    if ind == [None]:
        raise FormatError(f"{where}: ind: must be a sum of 1, 2, 4, 8, 16", reason="wrong_value")
    if not isinstance(text, str):
        raise FormatError(f"{where}: value: must be a string", reason="encoding")
    content = from_base64url(text, f"{where}: value")
    return make_record(media_type, content, ind[0] if ind else None, where)


def _tree(message: Cmw, budget: Budget, depth: int) -> object:
    budget.spend(depth, collection=isinstance(message, Collection), where="CMW")
    if isinstance(message, Record):
        media_type, value, ind = make_record(*message, "CMW")
        found: list[object] = [media_type, to_base64url(value)]
        return found if ind is None else [*found, ind]
    make_collection(message.entries, message.kind, "CMW")
    if KIND in message.entries or any(not isinstance(label, str) for label in message.entries):
        problem = f"CMW: labels in JSON must be text other than {KIND}"
        raise UsageError(problem, reason="reserved" if KIND in message.entries else "wrong_type")
    tree: dict[Label, object] = {} if message.kind is None else {KIND: message.kind}
    for label, entry in message.entries.items():
        tree[label] = _tree(entry, budget, depth + 1)
    return tree
