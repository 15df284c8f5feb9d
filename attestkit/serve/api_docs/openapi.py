"""OpenAPI document of a listener, generated from the API model."""

import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from attestkit.serve.api_docs import api_model as model
from attestkit.serve.api_docs.examples import example_of
from attestkit.serve.rpc import json_codec
from attestkit.serve.rpc.message_fields import UNNUMBERED, Field, fields_of, package_of
from attestkit.serve.rpc.messages import Error

# JSON Schema of messages, for bodies, queries and responses.


def schema(message: model.Message, *, answer: bool) -> dict[str, Any]:
    """Return the JSON Schema of a message.

    With `answer`, it is the schema of a response: all fields are required, and hex is lowercase.
    Without, it is that of a request.
    """
    words, fields = model.read_docstring(message), fields_of(message)
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
    required = [f.name for f in fields if (f.number != UNNUMBERED if answer else is_required(f))]
    if required:
        found["required"] = required
    return found


def is_required(field: Field) -> bool:
    """Return whether a request must contain the field, because its default is not a valid value."""
    bounds = field.bounds
    if field.kind is int or field.repeated:
        return False
    return bounds.least > 0 or (bool(bounds.one_of) and field.default not in bounds.one_of)


def _field_schema(field: Field, *, answer: bool) -> dict[str, Any]:
    one = (
        _ref("schemas", model.schema_name(field.kind))
        if field.nested
        else value_schema(field, answer=answer)
    )
    if field.repeated:
        return {"type": "array", "items": one}
    if field.optional:
        return {**one, "type": [one["type"], "null"]}
    return one


def value_schema(field: Field, *, answer: bool = False) -> dict[str, Any]:
    """Return the JSON Schema of a field's value; of one item, if the field is repeated.

    With `answer`, hex is lowercase; without, it may have capitals and `0x`.
    """
    least, most, one_of, pattern = field.bounds
    if field.kind is bool:
        return {"type": "boolean"}
    if field.kind is int:
        return {"type": "integer", "format": f"uint{field.bits}", "minimum": least, "maximum": most}
    if field.kind is bytes:
        # Hex: requests may use capitals and `0x`.
        digits, prefix = ("[0-9a-f]", "") if answer else ("[0-9a-fA-F]", "(0x)?")
        times = f"{{{least},{most or ''}}}" if least or most else "*"
        pattern = f"^{prefix}({digits}{{2}}){times}$"
        least, most = 2 * least, most and 2 * most + (0 if answer else len("0x"))
    limits = {"enum": [*one_of], "pattern": pattern, "minLength": least, "maxLength": most}
    return {"type": "string", **{name: limit for name, limit in limits.items() if limit}}


def example(message: model.Message, *, answer: bool) -> dict[str, Any]:
    """Return the example of a message as decoded JSON.

    That of a request (not `answer`) omits fields that have their default.
    """
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


def _flag(name: str, description: str) -> dict[str, Any]:
    return {**_query(name, _FLAG, description), "allowEmptyValue": True}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


_LOG_PARAMETERS: Final = [
    {
        "name": "container",
        "in": "path",
        "required": True,
        "description": "Name or id of a container.",
        "schema": {"type": "string", "pattern": "^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$"},
        "example": "dstack-gateway-1",
    },
    _query(
        "since",
        _TIME,
        "Start time: `90s`, `30m`, `1h` or `7d` ago; a number below 1,000,000,000 is seconds ago, "
        "a larger one a Unix time; 0 or empty: from the beginning.",
    ),
    _query("until", _TIME, "End time, in the format of `since`; 0 or empty: until now."),
    _flag("follow", "Follow the log."),
    _flag("text", "The message as text instead of base64."),
    _flag("bare", "The message without JSON."),
    _flag("timestamps", "An RFC 3339 time before each line."),
    _query("tail", _TAIL, "Number of lines from the end, or `all`."),
    _flag("ansi", "Keep escape sequences, with `bare` and `text`."),
]
_LOG_FORMAT: Final = (
    "One JSON object per line with `channel` and `message`, unless `bare` is given. A flag without "
    "a value is on; letter case does not matter. An error after the first line is a JSON object in "
    "the stream, with `error`."
)
_PAGES: Final[tuple[tuple[str, str, str, dict[str, Any]], ...]] = (
    ("/", "dashboard", "Show the app's identity, containers and system", _HTML),
    ("/metrics", "metrics", "Get metrics of the system and the server for Prometheus", _TEXT),
    ("/logs/{container}", "logs", "Get the log of a container", _TEXT),
    ("/openapi.json", "openapi", "Get this document", _ANY_OBJECT),
    ("/docs", "docs", "Show this document as HTML", _HTML),
)


def pages(api: model.Api) -> dict[str, dict[str, Any]]:
    """Return the OpenAPI operations of the listener's views by path.

    The member `content` of an operation describes the body of the 200 response.
    """
    found: dict[str, dict[str, Any]] = {}
    protos = (
        (
            f"/{package}.proto",
            f"proto_{package.replace('.', '_')}",
            f"Get the messages and services of package `{package}` for protoc",
            _TEXT,
        )
        for package in api.packages
    )
    for path, name, summary, content in (*_PAGES, *protos):
        if path.removesuffix("{container}") in api.pages:
            found[path] = {"operationId": name, "summary": summary, "content": content}
            if name == "logs":
                found[path] |= {"parameters": _LOG_PARAMETERS, "description": _LOG_FORMAT}
    return found


Json: TypeAlias = dict[str, Any]

_JSON, _BINARY = "application/json", "application/octet-stream"
_ABOUT = "\n".join(
    (
        "A method can be called in three ways, unless its description restricts them.\n",
        *(f"* **{n}** {t}" for n, t in model.ENCODINGS.items()),
    )
)
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


def make_document(api: model.Api) -> Json:
    """Return the OpenAPI 3.1 document of a listener."""
    headers = {"X-Request-Id": _REQUEST_ID}
    if api.names_version:
        headers["X-App-Version"] = _APP_VERSION
    paths: Json = {}
    for service in api.services:
        for call in model.list_calls(service):
            paths[call.path] = {"post": _post(call, headers)}
            if not call.json_only:
                paths[call.path]["get"] = _get(call, headers)
    for path, page in pages(api).items():
        content = page.pop("content")
        paths[path] = {
            "get": {"tags": ["pages"], **page, "responses": _responses(content, headers)}
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": api.title,
            "version": api.version,
            "description": f"{_ABOUT}\n\n{model.ERRORS}",
        },
        "servers": [{"url": "/", "description": f"curl {api.curl}/..."}],
        "tags": [
            *({"name": model.title_of(service)} for service in api.services),
            {"name": "pages", "description": "Pages and other views."},
        ],
        "paths": paths,
        "components": {
            "headers": headers,
            "responses": {_name(status): _error(status, headers) for status in model.STATUSES},
            "schemas": _schemas(api),
        },
    }


def _schemas(api: model.Api) -> Json:
    requests = {call.request for service in api.services for call in model.list_calls(service)}
    return {
        **{
            model.schema_name(message): schema(message, answer=message not in requests)
            for message in model.list_messages(api.services)
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
    """Return the OpenAPI object of the error response with a status, such as `404`.

    It refers to the `headers` of the API, OpenAPI objects by name. Errors before a request is
    parsed (`_OF_LISTENER`) are always JSON, and lack these headers.
    """
    content: Json = {_JSON: {"schema": _ref("schemas", "Error")}}
    if status in _OF_LISTENER:
        return {"description": model.STATUSES[status], "content": content}
    return {
        "description": model.STATUSES[status],
        "headers": _refs(headers),
        "content": {**content, _BINARY: _binary(Error)},
    }


def _post(call: model.Call, headers: Json) -> Json:
    content: Json = {_JSON: {"schema": {}}}
    if call.request is not None:
        content[_JSON] = _media_type(call.request, answer=False)
    required = call.request is not None and any(map(is_required, fields_of(call.request)))
    answer = _answer(call)
    if not call.json_only:
        content[_BINARY] = _binary(call.request)
        answer = {**answer, _BINARY: _binary(call.response)}
    return {
        **_operation(call, ""),
        "requestBody": {"required": required, "content": content},
        "responses": _responses(answer, headers),
    }


def _get(call: model.Call, headers: Json) -> Json:
    return {
        **_operation(call, "_get"),
        "parameters": [] if call.request is None else list(_parameters(call.request)),
        "responses": _responses(_answer(call), headers),
    }


def _operation(call: model.Call, ending: str) -> Json:
    others = ", ".join([f"`{path}`" for path in call.other_paths])
    also = f" Other paths with the same response: {others}." if others else ""
    also += f" {model.JSON_ONLY}" if call.json_only else ""
    return {
        "tags": [call.service],
        "operationId": call.id.replace(".", "_").replace("-", "_") + ending,
        "summary": call.summary,
        "description": f"{call.summary}. {call.details}".rstrip() + also,
    }


def _parameters(message: model.Message) -> Iterator[Json]:
    properties = schema(message, answer=False)["properties"]
    shown = example(message, answer=False)
    for field in fields_of(message):
        one = value_schema(field)
        if field.optional:
            one = {"anyOf": [one, {"const": ""}]}  # empty: unset
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


def _answer(call: model.Call) -> Json:
    if call.response is None:
        return {_JSON: {"schema": {"type": "null"}}}
    return {_JSON: _media_type(call.response, answer=True)}


def _media_type(message: model.Message, *, answer: bool) -> Json:
    return {
        "schema": _ref("schemas", model.schema_name(message)),
        "example": example(message, answer=answer),
    }


def _responses(content: Json, headers: Json) -> Json:
    return {
        "200": {"description": "Done.", "headers": _refs(headers), "content": content},
        **{status: _ref("responses", _name(status)) for status in model.STATUSES},
    }


def _name(status: str) -> str:
    return HTTPStatus(int(status)).phrase.replace(" ", "")


def _binary(message: model.Message | None) -> Json:
    """Return the media type of a protobuf message, whose contents a schema cannot describe.

    None stands for `google.protobuf.Empty`.
    """
    name = (
        "google.protobuf.Empty" if message is None else f"{package_of(message)}.{message.__name__}"
    )
    return {"schema": {"title": name, "contentMediaType": _BINARY}}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _refs(headers: Json) -> Json:
    return {name: _ref("headers", name) for name in headers}
