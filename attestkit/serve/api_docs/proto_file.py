"""`.proto` file of a listener's services, for protoc."""

import textwrap
from collections.abc import Iterator

from attestkit.serve.api_docs.api_model import (
    Api,
    Call,
    Message,
    list_calls,
    list_messages,
    read_docstring,
)
from attestkit.serve.rpc.messages import PACKAGE, Error, Field, fields_of

_TYPES = {str: "string", bool: "bool", int: "uint64", bytes: "bytes"}
_EMPTY = "google.protobuf.Empty"
_HEAD = f"""\
// {{title}}, in proto3.
//
// To call a method, POST its request to its path with Content-Type:
// application/octet-stream. Every response but a 200 is a message Error.
syntax = "proto3";

package {PACKAGE};

import "google/protobuf/empty.proto";
"""


def proto_file(api: Api) -> str:
    """Return the services of a listener and their messages in the proto3 language."""
    parts = [_HEAD.format(title=api.title)]
    for service in api.services:
        calls = "\n".join(line for call in list_calls(service) for line in _call(call))
        parts.append(f"service {service.name} {{\n{calls}\n}}\n")
    parts += [
        "\n".join(_message(message)) + "\n" for message in (*list_messages(api.services), Error)
    ]
    return "\n".join(parts)


def _call(call: Call) -> Iterator[str]:
    yield from _comment(f"{call.summary}. {call.details}", "  ")
    yield f"  // POST {call.path}"
    request, response = _name(call.request), _name(call.response)
    yield f"  rpc {call.name}({request}) returns ({response});"


def _name(message: Message | None) -> str:
    return _EMPTY if message is None else message.__name__


def _message(message: Message) -> Iterator[str]:
    words = read_docstring(message)
    yield from _comment(f"{words.summary}.")
    yield f"message {message.__name__} {{"
    for field in fields_of(message):
        yield from _comment(words.fields[field.name], "  ")
        yield f"  {_label(field)}{_TYPES[field.kind]} {field.name} = {field.number};"
    yield "}"


def _label(field: Field) -> str:
    return "repeated " if field.repeated else "optional " if field.optional else ""


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 96, initial_indent=f"{indent}// ", subsequent_indent=f"{indent}// ")
