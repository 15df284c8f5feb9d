"""Schemathesis hooks for protobuf: generated JSON is sent and checked as protobuf messages.

OpenAPI cannot describe the content of `application/octet-stream`. The hook replaces it by the JSON
schema of the same message, and the functions below translate.
"""

import json
from typing import Any, NamedTuple

import schemathesis

from attestkit.errors import FormatError
from attestkit.serve.rpc import json_codec, messages, messages_v1, protobuf_codec
from attestkit.serve.rpc.messages import Error

BINARY = "application/octet-stream"
MALFORMED = b"\xff"

_requests: dict[tuple[str, str], str] = {}
_responses: dict[tuple[str, str], str] = {}


@schemathesis.hook
def before_load_schema(_context: Any, schema: dict[str, Any]) -> None:
    """Record the message of each operation, and insert its JSON schema."""
    for path, verbs in schema["paths"].items():
        if "post" not in verbs:
            continue
        operation, key = verbs["post"], ("post", path)
        _requests[key] = _replace(operation["requestBody"]["content"], {})
        _responses[key] = _replace(operation["responses"]["200"]["content"], {"type": "null"})
    for response in schema["components"]["responses"].values():
        _replace(response["content"], {})


@schemathesis.hook
def filter_query(_context: Any, query: dict[str, Any] | None) -> bool:
    """Leave out empty texts, which are defaults: so is an empty object, that should be refused."""
    return not any(value == "" or isinstance(value, dict) for value in (query or {}).values())


def _replace(content: dict[str, Any], empty: dict[str, Any]) -> str:
    if BINARY not in content:
        return ""
    title: str = content[BINARY]["schema"]["title"]  # package and name
    name = title.rpartition(".")[2]
    if title.startswith(f"{messages_v1.PACKAGE}."):
        name = f"v1.{name}"
    reference = {"$ref": f"#/components/schemas/{name}"}
    content[BINARY]["schema"] = empty if name == "Empty" else reference
    return name


def _message(name: str) -> Any:
    """Return the message of a schema."""
    version, _, short = name.rpartition(".")
    return getattr(messages_v1 if version else messages, short)


@schemathesis.serializer(BINARY)
def encode(context: Any, value: Any) -> Any:
    """Return the protobuf message of a JSON value, or malformed bytes if it has no message."""
    operation = context.case.operation
    name = _requests[operation.method.lower(), operation.path]
    if name == "Empty":
        return b"anything"
    return _encode(_message(name), value)


def _encode(message: type[NamedTuple], value: Any) -> bytes:
    try:
        found = json_codec.decode(message, json.dumps(value).encode())
    except (FormatError, ValueError):
        return MALFORMED
    return b"".join(protobuf_codec.encode(found))


@schemathesis.deserializer(BINARY)
def decode(context: Any, response: Any) -> Any:
    """Return the JSON of a protobuf response."""
    operation = context.operation
    if response.status_code != 200:
        return {"error": protobuf_codec.decode(Error, response.content).message}
    name = _responses[operation.method.lower(), operation.path]
    if name == "Empty":
        assert response.content == b""
        return None
    found = protobuf_codec.decode(_message(name), response.content)
    return json.loads(b"".join(json_codec.encode(found)))
