"""HTML page about a listener's methods: requests, responses and curl commands.

It has no scripts and loads nothing. It is generated from the same model as the OpenAPI document.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup, escape

from attestkit._jinja import style, templates
from attestkit.serve.api_docs.api_model import (
    ENCODINGS,
    ERRORS,
    STATUSES,
    Api,
    Call,
    Message,
    list_calls,
    read_docstring,
)
from attestkit.serve.api_docs.openapi import PAGES, example, is_required
from attestkit.serve.rpc.messages import Field, fields_of

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["CONTENT_SECURITY_POLICY", "curl_get", "curl_post", "render_page"]

_KINDS: dict[type, str] = {str: "string", bool: "boolean", int: "number", bytes: "hex"}
_UNITS: dict[type, str] = {str: "characters", bytes: "bytes"}
_CODE = re.compile("`([^`]+)`")
_CSS = style("attestkit.serve.api_docs", "docs.css")
_CSS_HASH = b64encode(sha256(_CSS.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_CSS_HASH}'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)


class _FieldRow(NamedTuple):
    """One field of a message."""

    name: str
    number: int
    kind: str
    words: str
    bounds: str
    required: bool


class _MethodSection(NamedTuple):
    call: Call
    request: list[_FieldRow]
    response: list[_FieldRow]
    post: str
    get: str
    answer: str  # example response in JSON


class _ServiceSection(NamedTuple):
    name: str
    methods: list[_MethodSection]


def render_page(api: Api) -> str:
    """Return the HTML page about a listener."""
    pages = [shown for path, shown in PAGES.items() if path in api.pages]
    groups = [
        _ServiceSection(s.name, [_method(api, call) for call in list_calls(s)])
        for s in api.services
    ]
    return _template().render(
        api=api,
        css=_CSS,
        encodings=ENCODINGS,
        errors=ERRORS,
        statuses=STATUSES,
        groups=groups,
        pages=pages,
    )


@cache
def _template() -> "Template":
    environment = templates("attestkit.serve.api_docs")
    environment.filters["words"] = _words
    return environment.get_template("docs.html.jinja")


def _words(text: str) -> Markup:
    """Return text as HTML, with the parts in backticks as code."""
    plain, *rest = _CODE.split(text)
    pairs = zip(rest[::2], rest[1::2], strict=True)  # code, and the text after it
    return escape(plain) + Markup("").join(Markup("<code>%s</code>%s") % pair for pair in pairs)


def _method(api: Api, call: Call) -> _MethodSection:
    answer = None if call.response is None else example(call.response, answer=True)
    return _MethodSection(
        call,
        list(_rows(call.request)),
        list(_rows(call.response)),
        curl_post(api, call),
        curl_get(api, call),
        json.dumps(answer, indent=2),
    )


def _rows(message: Message | None) -> Iterator[_FieldRow]:
    if message is None:
        return
    words = read_docstring(message).fields
    for field in fields_of(message):
        kind = _KINDS[field.kind]
        yield _FieldRow(
            field.name,
            field.number,
            f"array of {kind}" if field.repeated else kind,
            words[field.name],
            _bounds(field),
            is_required(field),
        )


def _bounds(field: Field) -> str:
    """Return the bounds of a field as a sentence."""
    least, most, one_of, _ = field.bounds
    if one_of:
        return f"One of {', '.join(filter(None, one_of))}."
    unit = _UNITS.get(field.kind)
    if unit is None or (most is None and not least):
        return ""
    if least == most:
        return f"{most} {unit}."
    if most is None:
        return "Not empty."
    return f"{least} to {most} {unit}." if least else f"At most {most} {unit}."


def _example_request(call: Call) -> dict[str, Any]:
    return {} if call.request is None else example(call.request, answer=False)


def curl_post(api: Api, call: Call) -> str:
    """Return the curl command of a POST with the example request."""
    return (
        f"curl {api.curl}{call.path} \\\n  -H 'Content-Type: application/json' \\\n"
        f"  -d '{json.dumps(_example_request(call))}'"
    )


def curl_get(api: Api, call: Call) -> str:
    """Return the curl command of a GET; with -g, because curl expands brackets."""
    options, _, host = f"-g {api.curl}".rpartition(" ")
    return f"curl {options} '{host}{call.path}{_query(_example_request(call))}'"


def _query(values: dict[str, Any]) -> str:
    pairs = []
    for name, value in values.items():
        several = isinstance(value, list)
        for at, item in enumerate(value if several else [value]):
            text = json.dumps(item) if isinstance(item, bool) else str(item)
            pairs.append(f"{name}[{at}]={quote(text)}" if several else f"{name}={quote(text)}")
    return "?" + "&".join(pairs) if pairs else ""
