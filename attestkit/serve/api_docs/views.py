"""API documents of a listener: OpenAPI, HTML page and `.proto` files.

Each is generated when it is first requested, and cached.
"""

import asyncio
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from attestkit.serve.api_docs import api_model as model
from attestkit.serve.http.views import Header, View, ViewRequest, ViewResponse
from attestkit.serve.rpc.message_fields import UNNUMBERED, Field, fields_of
from attestkit.serve.rpc.messages import Error
from attestkit.serve.rpc.service import Service
from attestkit.serve.services.context import Guest

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
    """Return the text of the .proto file (proto3) of the protobuf package with this name.

    It has the package's services of the listener, and their messages.
    """
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


def make_views(api: model.Api) -> Mapping[str, View]:
    """Return the views of the API documents, by path."""
    protos = {
        f"/{package}.proto": _cached(partial(_proto, api, package)) for package in api.packages
    }
    return {path: _cached(partial(make, api)) for path, make in _DOCUMENTS.items()} | protos


def _openapi(api: model.Api) -> ViewResponse:
    import json

    from attestkit.serve.api_docs.openapi import make_document

    text = json.dumps(make_document(api), ensure_ascii=False, separators=(",", ":"))
    return ViewResponse(b"application/json", text.encode("utf-8"))


def _page(api: model.Api) -> ViewResponse:
    from attestkit.serve.api_docs.html_page import CONTENT_SECURITY_POLICY, render_page

    headers: Sequence[Header] = (
        (b"content-security-policy", CONTENT_SECURITY_POLICY.encode("ascii")),
        (b"referrer-policy", b"no-referrer"),
    )
    return ViewResponse(b"text/html; charset=utf-8", render_page(api).encode("utf-8"), headers)


def _proto(api: model.Api, package: str) -> ViewResponse:
    return ViewResponse(b"text/plain; charset=utf-8", proto_file(api, package).encode("utf-8"))


_DOCUMENTS = {"/openapi.json": _openapi, "/docs": _page}


def list_paths(services: Sequence[Service]) -> frozenset[str]:
    """Return the paths of the API documents of a listener with these services."""
    return frozenset({*_DOCUMENTS, *(f"/{service.package}.proto" for service in services)})


def _cached(make: Callable[[], ViewResponse]) -> View:
    """Return a view whose response `make()` generates, once, in a thread, at the first request."""
    response: ViewResponse | None = None

    async def show(_guest: Guest, _request: ViewRequest) -> ViewResponse:
        nonlocal response
        if response is None:
            response = await asyncio.to_thread(make)
        return response

    return View(show)
