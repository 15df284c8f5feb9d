"""What the document says of everything a listener shows that is no method."""

from typing import Any, Final

__all__ = ["PAGES"]

_FLAG: Final = {"type": "string", "enum": ["", "on", "yes", "true", "off", "no", "false"]}
_TIME: Final = {"type": "string", "pattern": r"^([0-9]{1,18}|\+?[0-9]{1,18}[smhd])?$"}
_TAIL: Final = {"type": "string", "pattern": "^(all|[0-9]{1,9})$", "default": "1000"}
_HTML: Final = {"text/html": {"schema": {"type": "string"}}}
_TEXT: Final = {"text/plain": {"schema": {"type": "string"}}}
_JSON: Final = {"application/json": {"schema": {"type": "object"}}}


def _page(id_: str, summary: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
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
        "From then on: `90s`, `30m`, `1h`, `7d` ago; a bare number below 1,000,000,000 is seconds "
        "ago, a larger one a Unix time; 0 or empty is from the beginning.",
    ),
    _query("until", _TIME, "Up to then, written as `since`; 0 or empty is up to now."),
    _query("follow", _FLAG, "Go on with what the container writes from now on."),
    _query("text", _FLAG, "The message as text instead of base64."),
    _query("bare", _FLAG, "The message alone, without JSON around it."),
    _query("timestamps", _FLAG, "A time in RFC 3339 before each line."),
    _query("tail", _TAIL, "How many lines from the end, or `all`."),
    _query("ansi", _FLAG, "Leave escape sequences in, with `bare` and `text`."),
]

PAGES: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "/": ("/", _page("dashboard", "Show who the app is, its containers and the system", _HTML)),
    "/metrics": (
        "/metrics",
        _page("metrics", "Show figures of the system and the server, as Prometheus reads", _TEXT),
    ),
    "/logs/": (
        "/logs/{container}",
        _page(
            "logs",
            "Show what a container wrote",
            _TEXT,
            parameters=_LOG_PARAMETERS,
            description=(
                "One JSON object a line, `channel` and `message`, unless `bare` is given. A flag "
                "is on where it stands without a value; letter case does not matter. Errors after "
                "the first line are an object inside the stream, `error`."
            ),
        ),
    ),
    "/openapi.json": ("/openapi.json", _page("openapi", "Get this document", _JSON)),
    "/docs": ("/docs", _page("docs", "Show this document as a page", _HTML)),
    "/dstack_guest.proto": (
        "/dstack_guest.proto",
        _page("proto", "Get the messages and services for protoc", _TEXT),
    ),
}
"""By the path of a view: the path in the document, and what is said of it."""
