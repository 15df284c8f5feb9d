"""HTML page about a listener's methods: requests, responses and curl commands.

It has no scripts and loads nothing. It is generated from the same model as the OpenAPI document.
"""

import json
import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from markupsafe import Markup, escape

from attestkit._formats.html_templates import style, templates
from attestkit.serve.api_docs import api_model as model
from attestkit.serve.api_docs.openapi import example, is_required, pages
from attestkit.serve.rpc.message_fields import Field, fields_of

if TYPE_CHECKING:
    from jinja2 import Template

_KINDS: dict[type, str] = {str: "string", bool: "boolean", int: "number", bytes: "hex"}
_UNITS: dict[type, str] = {str: "characters", bytes: "bytes"}
_CODE = re.compile("`([^`]+)`")
_CSS = style("attestkit.serve.api_docs", "docs.css")
_CSS_HASH = b64encode(sha256(_CSS.encode()).digest()).decode()
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_CSS_HASH}'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)


def render_page(api: model.Api) -> str:
    """Return the HTML page that documents a listener's API."""
    return _template().render(
        api=api,
        css=_CSS,
        encodings=model.ENCODINGS,
        errors=model.ERRORS,
        json_only=model.JSON_ONLY,
        statuses=model.STATUSES,
        pages=pages(api),
    )


@cache
def _template() -> "Template":
    environment = templates("attestkit.serve.api_docs")
    environment.filters["words"] = _words
    environment.filters["kind"] = _kind
    environment.filters["bounds"] = _bounds
    environment.filters["is_required"] = is_required
    environment.globals.update(
        list_calls=model.list_calls,
        title_of=model.title_of,
        fields_of=fields_of,
        read_docstring=model.read_docstring,
        curl_post=curl_post,
        curl_get=curl_get,
        example_answer=_example_answer,
    )
    return environment.get_template("docs.html.jinja")


def _words(text: str) -> Markup:
    """Return text as HTML, with the parts in backticks as code."""
    plain, *rest = _CODE.split(text)
    pairs = zip(rest[::2], rest[1::2], strict=True)  # code, and the text after it
    return escape(plain) + Markup("").join(Markup("<code>%s</code>%s") % pair for pair in pairs)


def _example_answer(message: model.Message | None) -> str:
    return json.dumps(None if message is None else example(message, answer=True), indent=2)


def _kind(field: Field) -> str:
    kind = field.kind.__name__ if field.nested else _KINDS[field.kind]
    return f"array of {kind}" if field.repeated else kind


def _bounds(field: Field) -> str:
    """Return the bounds of a field as a sentence; empty if it has none."""
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


def _example_request(call: model.Call) -> dict[str, Any]:
    return {} if call.request is None else example(call.request, answer=False)


def curl_post(api: model.Api, call: model.Call) -> str:
    """Return the curl command of a POST with the example request."""
    return (
        f"curl {api.curl}{call.path} \\\n  -H 'Content-Type: application/json' \\\n"
        f"  -d '{json.dumps(_example_request(call))}'"
    )


def curl_get(api: model.Api, call: model.Call) -> str:
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
