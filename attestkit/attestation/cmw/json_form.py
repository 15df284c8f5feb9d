"""RATS Conceptual Message Wrapper in JSON: records are arrays, collections are objects.

A message is canonical base64url without padding (RFC 4648, section 5).
"""

import json

from attestkit._formats.compact_jws import from_base64url, to_base64url
from attestkit._formats.strict_json import decode_strictly
from attestkit._sanitize import shown
from attestkit.attestation.cmw import record as cmw
from attestkit.errors import FormatError, UsageError


def read_json(data: bytes) -> cmw.Cmw:
    """Decode `data`, a CMW in JSON: a record or a collection.

    Raises:
        FormatError: If the JSON is malformed or has duplicate keys, or the CMW is not valid or
            exceeds a limit. The message for valid JSON begins with the label of the record or
            collection, or "CMW" for the outermost.
    """
    return _read(decode_strictly(data), cmw.Budget(), 0, "CMW")


def write_json(message: cmw.Cmw) -> bytes:
    """Encode a record or a collection in compact JSON.

    Raises:
        UsageError: If the message is not valid, exceeds a limit of the decoder, or has an integer
            label.
    """
    try:
        return json.dumps(_tree(message, cmw.Budget(), 0), separators=(",", ":")).encode()
    except FormatError as error:
        raise cmw.usage_error(error) from error


def _read(value: object, budget: cmw.Budget, depth: int, where: str) -> cmw.Cmw:
    if isinstance(value, dict):
        budget.spend(depth, collection=True, where=where)
        named = cmw.KIND in value
        kind = value.pop(cmw.KIND, None)
        if named and kind is None:
            raise FormatError(f"{where}: {cmw.KIND}: must be a URI or an OID", reason="wrong_value")
        entries: dict[cmw.Label, cmw.Cmw] = {
            label: _read(entry, budget, depth + 1, shown(label)) for label, entry in value.items()
        }
        return cmw.make_collection(entries, kind, where)
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
    return cmw.make_record(media_type, content, ind[0] if ind else None, where)


def _tree(message: cmw.Cmw, budget: cmw.Budget, depth: int) -> object:
    budget.spend(depth, collection=isinstance(message, cmw.Collection), where="CMW")
    if isinstance(message, cmw.Record):
        media_type, value, ind = cmw.make_record(*message, "CMW")
        found: list[object] = [media_type, to_base64url(value)]
        return found if ind is None else [*found, ind]
    cmw.make_collection(message.entries, message.kind, "CMW")
    if cmw.KIND in message.entries or any(not isinstance(label, str) for label in message.entries):
        problem = f"CMW: labels in JSON must be text other than {cmw.KIND}"
        raise UsageError(
            problem, reason="reserved" if cmw.KIND in message.entries else "wrong_type"
        )
    tree: dict[cmw.Label, object] = {} if message.kind is None else {cmw.KIND: message.kind}
    for label, entry in message.entries.items():
        tree[label] = _tree(entry, budget, depth + 1)
    return tree
