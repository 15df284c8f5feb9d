"""The API documentation page: complete, self-contained, with working commands."""

import re
import shutil
from base64 import b64encode
from hashlib import sha256
from typing import Final

import pytest

from attestkit.serve import listener_apps
from attestkit.serve.api_docs import html_page
from attestkit.serve.api_docs.api_model import Api, list_calls
from attestkit.serve.api_docs.html_page import render_page
from attestkit.serve.rpc.message_fields import fields_of
from attestkit.serve.rpc.service import Service
from attestkit.serve.services import dstack_guest, guest_v1, worker_api
from tests.serve.asgi import Client
from tests.serve.pages.page import Page
from tests.serve.server import Server, run_program

CURL: Final = shutil.which("curl")


class _Page(Page):
    """A parsed page, its commands and the resources it loads."""

    def __init__(self, text: str) -> None:
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.commands: list[str] = []
        self.style = ""
        super().__init__(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif (
                name in {"src", "style"} or name.startswith("on") or (name, tag) == ("href", "link")
            ):
                self.loads.append(value or "")
        if tag == "pre":
            self.commands.append("")

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            self.style += data
            return
        super().handle_data(data)
        if "pre" in self._open:
            self.commands[-1] += data


@pytest.fixture
def pages(dstack: Client, tappd: Client, external: Client) -> dict[str, _Page]:
    """Return the page of each listener."""
    clients = {"dstack": dstack, "tappd": tappd, "http": external}
    return {name: _Page(client.get("/docs").body.decode()) for name, client in clients.items()}


def test_page_loads_nothing(external: Client) -> None:
    """The page has no script or image, and only its own style, as its policy states."""
    response = external.get("/docs")
    assert (response.status, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = _Page(response.body.decode())
    assert page.loads == ["data:,"]  # an empty icon prevents a request by the browser
    assert not set(page.tags) & {"script", "img", "iframe", "object", "form", "base"}
    digest = b64encode(sha256(page.style.encode()).digest()).decode()
    policy = response.headers["content-security-policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; ")
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_links_are_valid(pages: dict[str, _Page], external: Client) -> None:
    """Every anchor exists once, and every linked page is served."""
    for page in pages.values():
        assert len(page.ids) == len(set(page.ids))
        anchors = {link[1:] for link in page.links if link.startswith("#")}
        assert anchors <= set(page.ids)
    others = {link for link in pages["http"].links if not link.startswith("#")}
    assert others == {
        *("/", "/docs", "/openapi.json", "/dstack_guest.proto", "/dstack.guest.v1.proto"),
    }
    assert all(external.get(link).status == 200 for link in others)


@pytest.mark.parametrize(
    ("listener", "services"),
    [
        ("dstack", [dstack_guest.SERVICE, guest_v1.SERVICE]),
        ("tappd", [listener_apps._AT_ROOT, listener_apps._OLD_CLIENTS]),
        ("http", listener_apps.EXTERNAL_SERVICES),
    ],
)
def test_page_lists_every_method_and_field(
    pages: dict[str, _Page], listener: str, services: list[Service]
) -> None:
    """Every method and field is listed with its description."""
    page = pages[listener]
    for service in services:
        for call in list_calls(service):
            assert call.id in page.ids
            assert all(path in page.text for path in (call.path, *call.other_paths))
            assert call.summary in page.text
            for message in filter(None, (call.request, call.response)):
                assert all(field.name in page.text for field in fields_of(message))


def test_descriptions_are_escaped() -> None:
    """Descriptions are text on the page, not markup."""
    page = _Page(
        render_page(Api("<script>alert(1)</script>", "&lt;", "http://x", [worker_api.SERVICE]))
    )
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text
    assert str(html_page._words("a `<b>` & `c`")) == (
        "a <code>&lt;b&gt;</code> &amp; <code>c</code>"
    )


@pytest.mark.slow
@pytest.mark.skipif(CURL is None, reason="curl is not installed")
@pytest.mark.parametrize("listener", ["dstack", "tappd", "http", "dev_http"])
def test_commands_on_page_work(dev_server: Server, listener: str) -> None:
    """Every example command, run by a shell, succeeds."""
    place = dev_server.ready[listener]
    first = place.startswith("http")
    url = f"{place}/docs"
    socket = [] if first else ["--unix-socket", place]
    page = _Page(_run(["curl", "-s", *socket, url if first else "http://x/docs"]))
    commands = [text for text in page.commands if re.match(r"curl .*/(prpc/|v1/|[A-Z])", text)]
    commands = [text for text in commands if "/AttestGpu" not in text]  # 501
    guarded = sum(
        call.json_only and listener == "dev_http"
        for service in listener_apps.DEV_SERVICES
        for call in list_calls(service)
    )
    methods = [name for name in page.ids if name.count(".") == 1 and "AttestGpu" not in name]
    assert len(commands) == 2 * len(methods) - guarded
    for text in commands:
        command = re.sub(r"/var/run/\w+\.sock", place, text)
        command = re.sub(r"http://localhost:\d+", place, command)
        command = command.replace("curl ", "curl -sS --fail-with-body ", 1)
        assert _run(["sh", "-c", command])


def _run(command: list[str]) -> str:
    done = run_program(command)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
