"""OpenAPI document of a listener, generated from the API model."""

import json
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from attestkit.serve.api_docs.api_model import (
    ENCODINGS,
    ERRORS,
    STATUSES,
    Api,
    Call,
    Message,
    list_calls,
    list_messages,
    read_docstring,
)
from attestkit.serve.api_docs.examples import example_of
from attestkit.serve.rpc import json_codec
from attestkit.serve.rpc.json_codec import MAX_UINT64
from attestkit.serve.rpc.messages import PACKAGE, Error, Field, fields_of

__all__ = ["PAGES", "example", "is_required", "make_document", "schema", "value_schema"]

# JSON Schema of messages, for bodies, queries and responses.


def schema(message: Message, *, answer: bool) -> dict[str, Any]:
    """Return the schema of a message; in a response all fields are present and hex is lowercase."""
    words, fields = read_docstring(message), fields_of(message)
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
    """Return whether the field is required: its default is not valid."""
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
    """Return the schema of a field's value, or of its items."""
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
    """Return the schema of a hex string; requests may use capitals and `0x`."""
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
    """Return an example in JSON; for a request without the fields at their default."""
    shown = example_of(message)
    found: dict[str, Any] = json.loads(b"".join(json_codec.encode(shown)))
    defaults = {f.name for f, value in zip(fields_of(message), shown, strict=True) if not value}
    return {n: value for n, value in found.items() if answer or n not in defaults}


# OpenAPI description of a listener's views.

_FLAG: Final = {"type": "string", "enum": ["", "on", "yes", "true", "off", "no", "false"]}
_TIME: Final = {"type": "string", "pattern": r"^([0-9]{1,18}|\+?[0-9]{1,18}[smhd])?$"}
_TAIL: Final = {"type": "string", "pattern": "^(all|[0-9]{1,9})$", "default": "1000"}
_HTML: Final = {"text/html": {"schema": {"type": "string"}}}
_TEXT: Final = {"text/plain": {"schema": {"type": "string"}}}
_ANY_OBJECT: Final = {"application/json": {"schema": {"type": "object"}}}


def _path_item(id_: str, summary: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"operationId": id_, "summary": summary, "content": content, **more}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    found = {"name": name, "in": "query", "description": description, "schema": schema}
    return {**found, "allowEmptyValue": True} if schema is _FLAG else found


_LOG_PARAMETERS: Final = [
    {
        "name": "container",
        "in": "path",
        "required": True,
        "description": "Name or id of a container.",
        "schema": {"type": "string", "minLength": 1, "pattern": "^[^/]+$"},
        "example": "dstack-gateway-1",
    },
    _query(
        "since",
        _TIME,
        "Start time: `90s`, `30m`, `1h` or `7d` ago; a number below 1,000,000,000 is seconds ago, "
        "a larger one a Unix time; 0 or empty: from the beginning.",
    ),
    _query("until", _TIME, "End time, in the format of `since`; 0 or empty: until now."),
    _query("follow", _FLAG, "Follow the log."),
    _query("text", _FLAG, "The message as text instead of base64."),
    _query("bare", _FLAG, "The message without JSON."),
    _query("timestamps", _FLAG, "An RFC 3339 time before each line."),
    _query("tail", _TAIL, "Number of lines from the end, or `all`."),
    _query("ansi", _FLAG, "Keep escape sequences, with `bare` and `text`."),
]

PAGES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "/": ("/", _path_item("dashboard", "Show the app's identity, containers and system", _HTML)),
    "/metrics": (
        "/metrics",
        _path_item("metrics", "Get metrics of the system and the server for Prometheus", _TEXT),
    ),
    "/logs/": (
        "/logs/{container}",
        _path_item(
            "logs",
            "Get the log of a container",
            _TEXT,
            parameters=_LOG_PARAMETERS,
            description=(
                "One JSON object per line with `channel` and `message`, unless `bare` is given. A "
                "flag without a value is on; letter case does not matter. An error after the first "
                "line is a JSON object in the stream, with `error`."
            ),
        ),
    ),
    "/openapi.json": ("/openapi.json", _path_item("openapi", "Get this document", _ANY_OBJECT)),
    "/docs": ("/docs", _path_item("docs", "Show this document as HTML", _HTML)),
    "/dstack_guest.proto": (
        "/dstack_guest.proto",
        _path_item("proto", "Get the messages and services for protoc", _TEXT),
    ),
}
"""By path of the view: its path in the document, and its description."""


Json: TypeAlias = dict[str, Any]

_JSON, _BINARY = "application/json", "application/octet-stream"
_ABOUT = "\n".join(
    (
        "Every method can be called in three ways.\n",
        *(f"* **{n}** {t}" for n, t in ENCODINGS.items()),
    )
)
_PREFIX = " The path without the service's name also works: `{short}`."
_NAMES = {
    "400": "BadRequest",
    "404": "NotFound",
    "408": "RequestTimeout",
    "431": "RequestHeaderFieldsTooLarge",
    "500": "InternalServerError",
    "503": "ServiceUnavailable",
}
_OF_LISTENER = frozenset({"408", "431", "503"})  # sent before a request is parsed
_REQUEST_ID = {
    "description": "Id of the request, which also appears in the server's log.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]+-[0-9a-f]+$"},
}
_APP_VERSION = {
    "description": "Release of the API and revision of the server.",
    "required": True,
    "schema": {"type": "string", "pattern": r"^v.+ \(.+\)$"},
}


def make_document(api: Api) -> Json:
    """Return the OpenAPI 3.1 document of a listener."""
    headers = {"X-Request-Id": _REQUEST_ID}
    if api.names_version:
        headers["X-App-Version"] = _APP_VERSION
    paths: Json = {}
    for service in api.services:
        for call in list_calls(service):
            paths[call.path] = {"get": _get(call, headers), "post": _post(call, headers)}
    for path, (shown, page) in PAGES.items():
        if path in api.pages:
            paths[shown] = {"get": _page(page, headers)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": api.title,
            "version": api.version,
            "description": f"{_ABOUT}\n\n{ERRORS}",
        },
        "servers": [{"url": "/", "description": f"curl {api.curl}/..."}],
        "tags": [
            *({"name": service.name} for service in api.services),
            {"name": "pages", "description": "Pages and other views."},
        ],
        "paths": paths,
        "components": {
            "headers": headers,
            "responses": {name: _error(status, headers) for status, name in _NAMES.items()},
            "schemas": _schemas(api),
        },
    }


def _schemas(api: Api) -> Json:
    requests = {call.request for service in api.services for call in list_calls(service)}
    return {
        **{
            message.__name__: schema(message, answer=message not in requests)
            for message in list_messages(api.services)
        },
        "Error": {
            "type": "object",
            "description": "An error.",
            "properties": {"error": {"type": "string", "description": "Problem and remedy."}},
            "required": ["error"],
            "additionalProperties": False,
        },
    }


def _error(status: str, headers: Json) -> Json:
    """Return an error response; the listener's own errors are always JSON, without headers."""
    content: Json = {_JSON: {"schema": _ref("schemas", "Error")}}
    if status in _OF_LISTENER:
        return {"description": STATUSES[status], "content": content}
    return {
        "description": STATUSES[status],
        "headers": _refs(headers),
        "content": {**content, _BINARY: _binary(Error)},
    }


def _post(call: Call, headers: Json) -> Json:
    found = _operation(call, call.id.replace(".", "_"))
    content: Json = {_JSON: {"schema": {}}, _BINARY: _binary(call.request)}
    if call.request is not None:
        content[_JSON] = {
            "schema": _ref("schemas", call.request.__name__),
            "example": example(call.request, answer=False),
        }
    required = call.request is not None and any(map(is_required, fields_of(call.request)))
    found["requestBody"] = {"required": required, "content": content}
    found["responses"] = _responses(_answer(call, binary=True), headers)
    return found


def _get(call: Call, headers: Json) -> Json:
    found = _operation(call, call.id.replace(".", "_") + "_get")
    found["parameters"] = list(_parameters(call.request)) if call.request is not None else []
    found["responses"] = _responses(_answer(call, binary=False), headers)
    return found


def _operation(call: Call, operation_id: str) -> Json:
    also = _PREFIX.format(short=call.short_path) if call.short_path != call.path else ""
    return {
        "tags": [call.service],
        "operationId": operation_id,
        "summary": call.summary,
        "description": f"{call.summary}. {call.details}".rstrip() + also,
    }


def _parameters(message: Message) -> Iterator[Json]:
    properties = schema(message, answer=False)["properties"]
    shown = example(message, answer=False)
    for field in fields_of(message):
        one = value_schema(field)
        found = {
            "name": f"{field.name}[]" if field.repeated else field.name,
            "in": "query",
            "description": properties[field.name]["description"],
            "schema": {"type": "array", "items": one} if field.repeated else one,
        }
        if is_required(field):
            found["required"] = True
        if field.name in shown:
            found["example"] = shown[field.name]
        yield found


def _answer(call: Call, *, binary: bool) -> Json:
    content: Json = {_JSON: {"schema": {"type": "null"}}}
    if call.response is not None:
        content[_JSON] = {
            "schema": _ref("schemas", call.response.__name__),
            "example": example(call.response, answer=True),
        }
    return {**content, _BINARY: _binary(call.response)} if binary else content


def _responses(content: Json, headers: Json) -> Json:
    return {
        "200": {"description": "Done.", "headers": _refs(headers), "content": content},
        **{status: _ref("responses", name) for status, name in _NAMES.items()},
    }


def _page(page: Json, headers: Json) -> Json:
    content = page["content"]
    kept = {name: value for name, value in page.items() if name != "content"}
    return {"tags": ["pages"], **kept, "responses": _responses(content, headers)}


def _binary(message: Message | None) -> Json:
    """Return the media type of a protobuf message, whose contents a schema cannot describe."""
    name = "google.protobuf.Empty" if message is None else f"{PACKAGE}.{message.__name__}"
    return {"schema": {"title": name, "contentMediaType": _BINARY}}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _refs(headers: Json) -> Json:
    return {name: _ref("headers", name) for name in headers}
