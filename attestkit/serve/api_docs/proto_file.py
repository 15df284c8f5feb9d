"""`.proto` files of a listener's services, one for each package, for protoc."""

import textwrap
from collections.abc import Iterator

from attestkit.serve.api_docs import api_model as model
from attestkit.serve.rpc.message_fields import UNNUMBERED, Field, fields_of
from attestkit.serve.rpc.messages import Error

_TYPES = {str: "string", bool: "bool", bytes: "bytes"}
_EMPTY = "google.protobuf.Empty"
_HEAD = """\
// {title}, in proto3.
//
// To call a method, POST its request to its path with Content-Type:
// application/octet-stream. Every response but a 200 is a message Error.
syntax = "proto3";

package {package};
"""
_IMPORT = 'import "google/protobuf/empty.proto";\n'


def proto_file(api: model.Api, package: str) -> str:
    """Return a package's services of a listener, and their messages, in the proto3 language."""
    services = [service for service in api.services if service.package == package]
    parts = [_HEAD.format(title=api.title, package=package)]
    calls = [call for service in services for call in model.list_calls(service)]
    if any(None in {call.request, call.response} for call in calls):
        parts.append(_IMPORT)
    for service in services:
        lines = "\n".join(line for call in model.list_calls(service) for line in _call(call))
        parts.append(f"service {service.name} {{\n{lines}\n}}\n")
    parts += [
        "\n".join(_message(message)) + "\n" for message in (*model.list_messages(services), Error)
    ]
    return "\n".join(parts)


def _call(call: model.Call) -> Iterator[str]:
    yield from _comment(f"{call.summary}. {call.details}", "  ")
    yield f"  // POST {call.path}"
    request, response = _name(call.request), _name(call.response)
    yield f"  rpc {call.name}({request}) returns ({response});"


def _name(message: model.Message | None) -> str:
    return _EMPTY if message is None else message.__name__


def _message(message: model.Message) -> Iterator[str]:
    words = model.read_docstring(message)
    yield from _comment(f"{words.summary}.")
    yield f"message {message.__name__} {{"
    for field in fields_of(message):
        if field.number != UNNUMBERED:
            yield from _comment(words.fields[field.name], "  ")
            yield f"  {_label(field)}{_type(field)} {field.name} = {field.number};"
    yield "}"


def _type(field: Field) -> str:
    if field.kind is int:
        return f"uint{field.bits}"
    return field.kind.__name__ if field.nested else _TYPES[field.kind]


def _label(field: Field) -> str:
    return "repeated " if field.repeated else "optional " if field.optional else ""


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 96, initial_indent=f"{indent}// ", subsequent_indent=f"{indent}// ")
