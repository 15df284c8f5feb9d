"""The OpenAPI document of a listener, made from the same description as its codecs."""

from collections.abc import Iterator
from typing import Any, TypeAlias

from attestkit.serve.api import (
    ENCODINGS,
    ERRORS,
    STATUSES,
    Api,
    Call,
    Message,
    calls_of,
    messages_of,
)
from attestkit.serve.messages import PACKAGE, Error, fields_of
from attestkit.serve.openapi_pages import PAGES
from attestkit.serve.openapi_schemas import example, is_required, schema, value_schema

__all__ = ["document"]

Json: TypeAlias = dict[str, Any]

_JSON, _BINARY = "application/json", "application/octet-stream"
_ABOUT = "\n".join(
    (
        "Every method can be called in three ways.\n",
        *(f"* **{n}** {t}" for n, t in ENCODINGS.items()),
    )
)
_PREFIX = " The name of the service may be left out of the path: `{short}`."
_NAMES = {
    "400": "BadRequest",
    "404": "NotFound",
    "408": "RequestTimeout",
    "431": "RequestHeaderFieldsTooLarge",
    "500": "InternalServerError",
    "503": "ServiceUnavailable",
}
_OF_LISTENER = frozenset({"408", "431", "503"})  # answered before there is a request
_REQUEST_ID = {
    "description": "Names the request in the server's log.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9a-f]+-[0-9a-f]+$"},
}
_APP_VERSION = {
    "description": "Release of the API and revision of the server.",
    "required": True,
    "schema": {"type": "string", "pattern": r"^v.+ \(.+\)$"},
}


def document(api: Api) -> Json:
    """Return the OpenAPI 3.1 document of a listener."""
    headers = {"X-Request-Id": _REQUEST_ID}
    if api.names_version:
        headers["X-App-Version"] = _APP_VERSION
    paths: Json = {}
    for service in api.services:
        for call in calls_of(service):
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
            {"name": "pages", "description": "What is there besides the methods."},
        ],
        "paths": paths,
        "components": {
            "headers": headers,
            "responses": {name: _error(status, headers) for status, name in _NAMES.items()},
            "schemas": _schemas(api),
        },
    }


def _schemas(api: Api) -> Json:
    requests = {call.request for service in api.services for call in calls_of(service)}
    return {
        **{
            message.__name__: schema(message, answer=message not in requests)
            for message in messages_of(api.services)
        },
        "Error": {
            "type": "object",
            "description": "What went wrong.",
            "properties": {"error": {"type": "string", "description": "What, and what to do."}},
            "required": ["error"],
            "additionalProperties": False,
        },
    }


def _error(status: str, headers: Json) -> Json:
    """Return what an error looks like; a listener's own is JSON, for it has not read on."""
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
    """Return the media type of protobuf; a schema says nothing about what is inside."""
    name = "google.protobuf.Empty" if message is None else f"{PACKAGE}.{message.__name__}"
    return {"schema": {"title": name, "contentMediaType": _BINARY}}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _refs(headers: Json) -> Json:
    return {name: _ref("headers", name) for name in headers}
