"""The page for browsers says who the app is, whatever the app is called."""

import asyncio
from html.parser import HTMLParser

import pytest

from attestkit.serve import apps
from tests.serve.asgi import Client
from tests.serve.guests import Broken, MakeGuest


class _Page(HTMLParser):
    """Collects the texts of table cells, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cells:
            self.cells[-1] += data


def test_page_says_who_the_app_is(dstack: Client, external: Client) -> None:
    """Identity, links and measurements are on it, and that nothing of it is real."""
    response = external.get("/")
    assert (response.status, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page, info = _Page(response.body.decode()), dstack.get("/Info").json()
    rows = dict(zip(map(str.strip, page.cells[::2]), map(str.strip, page.cells[1::2]), strict=True))
    assert rows["App Name"] == "an app"
    for label, name in (("App ID", "app_id"), ("Instance ID", "instance_id")):
        assert rows[label] == info[name]
    assert "attestkit simulator" in page.text
    assert "This TEE is simulated" in page.text
    assert info["tcb_info"] in page.text
    assert all(external.get(link).status == 200 for link in page.links)
    assert len(page.links) == 2


def test_page_has_no_body_for_head(external: Client) -> None:
    """HEAD gets the headers."""
    assert external.request("HEAD", "/").headers == external.get("/").headers


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "\"&'</td>", "цель {} {rows} %s"])
def test_values_are_escaped(
    make_guest: MakeGuest, loop: asyncio.AbstractEventLoop, name: str
) -> None:
    """Nothing in the app's name or compose file becomes markup."""
    compose = {"name": name, "docker_compose_file": f"</textarea>{name}"}
    response = Client(apps.external_app(make_guest(compose=compose)), loop).get("/")
    page = _Page(response.body.decode())
    assert page.cells[1].strip() == name
    assert "script" not in page.tags
    assert page.tags.count("td") == 6
    assert page.tags.count("textarea") == 1


def test_hidden_measurements(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """An app that hides its measurements shows none here."""
    guest = make_guest(compose={"public_tcbinfo": False})
    text = Client(apps.external_app(guest), loop).get("/").body.decode()
    assert "TCB info is not public" in text
    assert guest.attester.registers()[3].hex() not in text


def test_page_without_evidence(make_guest: MakeGuest, loop: asyncio.AbstractEventLoop) -> None:
    """When the platform fails the page is a 500 with a JSON error."""
    response = Client(apps.external_app(make_guest(Broken)), loop).get("/")
    assert response.status == 500
    assert response.error().startswith("Failed to get worker info: Failed to get attestation: ")


@pytest.mark.parametrize("path", ["/metrics", "/logs/app", "/logs/", "/favicon.ico", "/index.html"])
def test_pages_that_are_not_served(external: Client, path: str) -> None:
    """Other paths are a 404 in JSON."""
    response = external.get(path)
    assert response.status == 404
    assert path in response.error()
