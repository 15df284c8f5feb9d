"""API documents of a listener: OpenAPI, HTML page and `.proto` files.

Each is generated when it is first requested, and cached.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from attestkit.serve.api_docs.api_model import Api
from attestkit.serve.http.views import Header, View, ViewRequest, ViewResponse
from attestkit.serve.rpc.service import Service
from attestkit.serve.services.context import Guest


def make_views(api: Api) -> Mapping[str, View]:
    """Return the views of the API documents, by path."""
    protos = {
        f"/{package}.proto": _cached(partial(_proto, api, package)) for package in api.packages
    }
    return {path: _cached(partial(make, api)) for path, make in _DOCUMENTS.items()} | protos


def _openapi(api: Api) -> ViewResponse:
    import json

    from attestkit.serve.api_docs.openapi import make_document

    text = json.dumps(make_document(api), ensure_ascii=False, separators=(",", ":"))
    return ViewResponse(b"application/json", text.encode("utf-8"))


def _page(api: Api) -> ViewResponse:
    from attestkit.serve.api_docs.html_page import CONTENT_SECURITY_POLICY, render_page

    headers: Sequence[Header] = (
        (b"content-security-policy", CONTENT_SECURITY_POLICY.encode("ascii")),
        (b"referrer-policy", b"no-referrer"),
    )
    return ViewResponse(b"text/html; charset=utf-8", render_page(api).encode("utf-8"), headers)


def _proto(api: Api, package: str) -> ViewResponse:
    from attestkit.serve.api_docs.proto_file import proto_file

    return ViewResponse(b"text/plain; charset=utf-8", proto_file(api, package).encode("utf-8"))


_DOCUMENTS = {"/openapi.json": _openapi, "/docs": _page}


def list_paths(services: Sequence[Service]) -> frozenset[str]:
    """Return the paths of the API documents of a listener with these services."""
    return frozenset({*_DOCUMENTS, *(f"/{service.package}.proto" for service in services)})


def _cached(make: Callable[[], ViewResponse]) -> View:
    """Return a view that generates its response once, in a thread."""
    response: ViewResponse | None = None

    async def show(_guest: Guest, _request: ViewRequest) -> ViewResponse:
        nonlocal response
        if response is None:
            response = await asyncio.to_thread(make)
        return response

    return View(show)
