"""Response of a simulated HTTP service, without sockets: those are in the program that uses it."""

import json
from typing import Final, NamedTuple

JSON: Final = "application/json"


class ServiceResponse(NamedTuple):
    """A response: HTTP status, header fields (name and value) and body.

    It has no Content-Length, which the server adds.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def content_response(content_type: str, body: bytes, status: int = 200) -> ServiceResponse:
    """Return a response of HTTP `status` with `body` unchanged, and only the field Content-Type."""
    return ServiceResponse(status, (("Content-Type", content_type),), body)


def json_response(value: object, status: int = 200, content_type: str = JSON) -> ServiceResponse:
    """Return a response of HTTP `status` whose body is `value` as JSON, with a content type."""
    return content_response(content_type, json.dumps(value).encode(), status)
