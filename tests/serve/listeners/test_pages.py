"""The pages: mounted paths, headers and assets."""

import asyncio
import re
from importlib.resources import files

import pytest

from attestkit.serve.pages.dashboard import ASSETS
from tests.serve.asgi import Client
from tests.serve.guests import MakeGuest
from tests.serve.pages.page import Engine, Page, create_client, create_container, read_page


def test_links_of_page_are_served(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """Every link of the page is served, and only mounted pages are linked."""
    guest = make_guest(compose={"public_sysinfo": True})
    for paths in ((), ("/docs", "/openapi.json", "/logs/")):
        client = create_client(guest, Engine(create_container(["a"])), loop, *paths)
        page = read_page(client)
        for link in page.links:
            if link.startswith("#"):
                assert f'id="{link.removeprefix("#")}"' in client.get("/").body.decode()
            else:
                assert client.get(link).status == 200, link
        documented = {"/prpc/Worker.Info", "/prpc/Worker.Version", "/metrics"}
        assert documented <= set(page.links)
        assert ("/docs" in page.links) == bool(paths)


def test_page_security_headers(external: Client) -> None:
    """The policy permits only the server's own resources, and no caching."""
    headers = external.get("/").headers
    policy = dict(
        rule.strip().split(" ", 1) for rule in headers["content-security-policy"].split(";")
    )
    assert policy == {
        "default-src": "'none'",
        "style-src": "'self'",
        "script-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_page_complies_with_policy(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """The page has no inline style or handler, and loads only cacheable assets."""
    guest = make_guest(compose={"public_sysinfo": True})
    client = create_client(guest, Engine(create_container(["a"])), loop, "/logs/")
    text = client.get("/").body.decode()
    page = Page(text)
    assert "style" not in page.tags
    assert not {name for name in page.attributes if name.startswith("on") or name == "style"}
    assert re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL) == [""]
    assert "http:" not in text
    assert "https:" not in text
    loaded = re.findall(r'(?:src|<link [^>]*href)="([^"]+)"', text)
    assert len(loaded) == 3
    for path in loaded:
        response = client.get(path)
        assert response.status == 200
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("name", ASSETS)
def test_assets_are_served(external: Client, name: str) -> None:
    """Assets have their types, load nothing, and are revalidated without their digest."""
    response = external.get(f"/assets/{name}")
    assert response.status == 200
    assert response.headers["content-type"].encode() == ASSETS[name]
    assert response.headers["cache-control"] == "no-cache"
    assert external.get(f"/assets/{name}?v=0").headers["cache-control"] == "no-cache"
    kept = (files("attestkit.serve.pages") / "templates" / name).read_bytes()
    assert response.body == kept
    assert b"//" not in re.sub(
        rb"^ *// .*|; // .*|http://www.w3.org/2000/svg", b"", kept, flags=re.MULTILINE
    )


@pytest.mark.parametrize(
    "path",
    [
        *("/metrics", "/logs/app", "/favicon.ico"),
        *("/assets/", "/assets/dashboard.html.jinja", "/assets/..%2Fpages.py", "/assets/x"),
    ],
)
def test_other_paths_are_404(external: Client, path: str) -> None:
    """Other paths are a 404 in JSON."""
    response = external.get(path)
    assert response.status == 404
    assert response.error().startswith("No such path: ")
