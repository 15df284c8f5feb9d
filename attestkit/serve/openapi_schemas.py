"""Messages as JSON Schema, for bodies, queries and answers."""

import json
from typing import Any

from attestkit.serve import json_codec
from attestkit.serve.api import Message, words_of
from attestkit.serve.examples import example_of
from attestkit.serve.json_codec import MAX_UINT64
from attestkit.serve.messages import Field, fields_of

__all__ = ["example", "is_required", "schema", "value_schema"]


def schema(message: Message, *, answer: bool) -> dict[str, Any]:
    """Return the schema of a message: of an answer all fields are there, and hex is lowercase."""
    words, fields = words_of(message), fields_of(message)
    found: dict[str, Any] = {
        "type": "object",
        "description": f"{words.summary}.",
        "properties": {
            field.name: {
                "description": words.fields[field.name],
                **_field_schema(field, answer=answer),
            }
            for field in fields
        },
    }
    required = [f.name for f in fields if (not f.omit_empty if answer else is_required(f))]
    if required:
        found["required"] = required
    return found


def is_required(field: Field) -> bool:
    """Tell whether a request without the field is refused, because its default is."""
    bounds = field.bounds
    if field.kind is int or field.repeated:
        return False
    return bounds.least > 0 or (bool(bounds.one_of) and field.default not in bounds.one_of)


def _field_schema(field: Field, *, answer: bool) -> dict[str, Any]:
    one = value_schema(field, answer=answer)
    if field.repeated:
        return {"type": "array", "items": one}
    if field.optional:
        return {**one, "type": [one["type"], "null"]}
    return one


def value_schema(field: Field, *, answer: bool = False) -> dict[str, Any]:
    """Return the schema of the value of a field, or of one of its items."""
    if field.kind is bytes:
        return _hex(field, answer=answer)
    if field.kind is bool:
        return {"type": "boolean"}
    bounds = field.bounds
    if field.kind is int:
        most = MAX_UINT64 if bounds.most is None else bounds.most
        return {"type": "integer", "format": "uint64", "minimum": bounds.least, "maximum": most}
    found: dict[str, Any] = {"type": "string"}
    if bounds.one_of:
        found["enum"] = list(bounds.one_of)
    if bounds.pattern:
        found["pattern"] = bounds.pattern
    if bounds.least:
        found["minLength"] = bounds.least
    if bounds.most is not None:
        found["maxLength"] = bounds.most
    return found


def _hex(field: Field, *, answer: bool) -> dict[str, Any]:
    """Return the schema of hex: requests may use capitals, and `0x` before it."""
    least, most = field.bounds.least, field.bounds.most
    digits, prefix = ("[0-9a-f]", "") if answer else ("[0-9a-fA-F]", "(0x)?")
    times = "*" if not least and most is None else f"{{{least},{'' if most is None else most}}}"
    found: dict[str, Any] = {"type": "string", "pattern": f"^{prefix}({digits}{{2}}){times}$"}
    if least:
        found["minLength"] = 2 * least
    if most is not None:
        found["maxLength"] = 2 * most + (0 if answer else len("0x"))
    return found


def example(message: Message, *, answer: bool) -> dict[str, Any]:
    """Return an example in JSON; one of a request has only what is not at its default."""
    shown = example_of(message)
    found: dict[str, Any] = json.loads(b"".join(json_codec.encode(shown)))
    defaults = {f.name for f, value in zip(fields_of(message), shown, strict=True) if not value}
    return {n: value for n, value in found.items() if answer or n not in defaults}
