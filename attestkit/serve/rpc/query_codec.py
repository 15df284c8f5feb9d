"""Query string codec of messages: `path=a%2Fb&alt_names[0]=x&usage_ra_tls=true`.

Percent escapes and `+` are decoded as in a form, brackets may be escaped, unknown keys are ignored,
and a repeated key is an error.
"""

import re
from typing import NamedTuple, TypeVar
from urllib.parse import parse_qsl

from attestkit.errors import FormatError
from attestkit.serve.rpc.json_codec import checked_number, hex_bytes
from attestkit.serve.rpc.message_fields import Field, defaults_of, fields_of

M = TypeVar("M", bound=NamedTuple)

_JSON_FLAGS = frozenset({b"json", b"json=", b"json=1", b"json=true"})
_NUMBER = re.compile(r"[0-9]{1,20}\Z")
_INDEX = re.compile(r"\[([0-9]{0,9})\]\Z")


def asks_for_json(query: bytes) -> bool:
    """Return whether the query requests JSON: `json`, `json=`, `json=1` or `json=true`."""
    return b"json" in query and not _JSON_FLAGS.isdisjoint(query.split(b"&"))


def decode(message: type[M], query: bytes) -> M:
    """Return the message in a raw query string; missing fields have their defaults.

    Items of an array are written `name[0]=...&name[1]=...` and sorted by index, or `name[]=...` in
    order of occurrence, after those with an index.

    Raises:
        FormatError: If a field other than an array, or an index of an array, is given twice; if an
            array has no brackets, or another field has them; or if a value is malformed.
    """
    if not query:
        return defaults_of(message)
    found = _collect(message, query)
    return message._make([_value(field, found.get(field.name)) for field in fields_of(message)])


def _collect(message: type[M], query: bytes) -> dict[str, dict[str, str]]:
    """Return the texts of each known field in a raw query string, by field name.

    Those of a field are by index as `_index_of` returns it.
    """
    known = {field.name: field for field in fields_of(message)}
    found: dict[str, dict[str, str]] = {}
    # Invalid UTF-8 becomes lone surrogates, which no name of a field has.
    text = query.decode("utf-8", "surrogateescape")
    for key, value in parse_qsl(text, keep_blank_values=True, errors="surrogateescape"):
        name, bracket, rest = key.partition("[")
        field = known.get(name)
        if field is None:
            continue
        index = _index_of(field, bracket + rest, len(found.get(name, ())))
        texts = found.setdefault(name, {})
        if index in texts:
            raise FormatError(f"{name}: given more than once", reason="duplicate")
        if not _is_utf8(value):
            raise FormatError(f"{name}: must be valid UTF-8", reason="encoding")
        texts[index] = value
    return found


def _is_utf8(text: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in text)


def _index_of(field: Field, brackets: str, count: int) -> str:
    """Return the index in `brackets` as a key: `2` for `[2]`, `+COUNT` for `[]`.

    The key is "" for a field that is not an array. `count` is the number of earlier values.

    Raises:
        FormatError: If an array has no brackets, or another field has some.
    """
    if not field.repeated:
        if brackets:
            raise FormatError(f"{field.name}: must have no index", reason="wrong_type")
        return ""
    index = _INDEX.match(brackets)
    if index is None:
        text = f"{field.name}: must be an array: {field.name}[0]=... for each item"
        raise FormatError(text, reason="wrong_type")
    # `[]` continues after the given values, so that both notations can be mixed.
    return str(int(index[1])) if index[1] else f"+{count}"


def _value(field: Field, texts: dict[str, str] | None) -> object:
    if texts is None:
        return field.default
    if field.repeated:
        # Indexed values first, in the order of their index, then those with `[]`.
        order = sorted(texts, key=lambda index: (index.startswith("+"), int(index)))
        return tuple([_scalar(field, texts[index]) for index in order])
    text = texts[""]
    if not text and field.optional:
        return None
    return _scalar(field, text)


def _scalar(field: Field, text: str) -> str | bool | int | bytes:
    if field.kind is str:
        return text
    if field.kind is bytes:
        return hex_bytes(field.name, text)
    if field.kind is bool:
        if text not in {"true", "false"}:
            raise FormatError(f"{field.name}: must be true or false", reason="wrong_value")
        return text == "true"
    return checked_number(field, int(text) if _NUMBER.match(text) else -1)
