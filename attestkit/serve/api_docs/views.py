"""What a listener says of itself: its OpenAPI document, the same as a page, its `.proto` file.

Each is made when it is first asked for, and kept; what makes them is loaded no sooner.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from attestkit.serve.api_docs.api_model import Api
from attestkit.serve.http.views import Answer, Asked, Header, View
from attestkit.serve.services.context import Guest

__all__ = ["PATHS", "views_of"]

PATHS = frozenset({"/openapi.json", "/docs", "/dstack_guest.proto"})


def views_of(api: Api) -> Mapping[str, View]:
    """Return the views of the documents about a listener, by path."""

    def openapi() -> Answer:
        import json

        from attestkit.serve.api_docs.openapi import document

        text = json.dumps(document(api), ensure_ascii=False, separators=(",", ":"))
        return Answer(b"application/json", text.encode("utf-8"))

    def page() -> Answer:
        from attestkit.serve.api_docs.html_page import CONTENT_SECURITY_POLICY, page_of

        headers: Sequence[Header] = (
            (b"content-security-policy", CONTENT_SECURITY_POLICY.encode("ascii")),
            (b"referrer-policy", b"no-referrer"),
        )
        return Answer(b"text/html; charset=utf-8", page_of(api).encode("utf-8"), headers)

    def proto() -> Answer:
        from attestkit.serve.api_docs.proto_file import proto_file

        return Answer(b"text/plain; charset=utf-8", proto_file(api).encode("utf-8"))

    made = {"/openapi.json": openapi, "/docs": page, "/dstack_guest.proto": proto}
    assert made.keys() == PATHS
    return {path: _kept(make) for path, make in made.items()}


def _kept(make: Callable[[], Answer]) -> View:
    """Return a view of what is made once, in a thread: loading what makes it takes its time."""
    kept: Answer | None = None

    async def show(_guest: Guest, _asked: Asked) -> Answer:
        nonlocal kept
        if kept is None:
            kept = await asyncio.to_thread(make)
        return kept

    return View(show)
