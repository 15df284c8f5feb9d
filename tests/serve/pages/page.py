"""Parser of the dashboard page, and fake container engines."""

import asyncio
from collections.abc import Sequence
from html.parser import HTMLParser

from attestkit.serve import listener_apps
from attestkit.serve.docker.engine import Container
from attestkit.serve.http.views import View, ViewRequest, ViewResponse
from attestkit.serve.rpc.dispatcher import RpcApp
from attestkit.serve.services.context import Guest
from attestkit.serve.services.worker_api import SERVICE
from tests.serve.asgi import Client
from tests.untyped import untyped


class Page(HTMLParser):
    """A parsed page: rows by label, headings, tables, links and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: dict[str, str] = {}
        self.table: list[list[str]] = []  # rows of cells without a row heading
        self.headings: list[str] = []
        self.addresses: list[int] = []  # numbers of the headings in the text
        self.tags: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.meters: list[str] = []  # values in percent
        self.text = ""
        self.textarea = ""
        self._open: list[str] = []
        self._label = ""
        self._cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a tag and its attributes."""
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.meters += [dict(attrs)["value"] or ""] if tag == "meter" else []
        self.links += [value or "" for name, value in attrs if name == "href" and tag == "a"]
        if tag not in {"meta", "link", "img"}:
            self._open.append(tag)
        if tag in {"h1", "h2", "title"}:
            self.headings.append("")
            self.addresses.append(len(self.text))
        elif tag == "tr":
            self._label, self._cells = "", []
        elif tag == "td":
            self._cells.append("")

    def handle_endtag(self, tag: str) -> None:
        """Check the nesting of tags."""
        assert self._open.pop() == tag
        if tag == "tr" and self._label:
            self.rows[self._label.strip()] = self._cells[0].strip()
        elif tag == "tr":
            self.table += [[cell.strip() for cell in self._cells]] if self._cells else []

    def handle_data(self, data: str) -> None:
        """Record text by its parent."""
        self.text += data
        for tag in self._open:
            if tag in {"h1", "h2", "title"}:
                self.headings[-1] += data
            elif tag == "textarea":
                self.textarea += data
            elif tag == "td":
                self._cells[-1] += data
        if "th" in self._open and "tbody" in self._open and "small" not in self._open:
            self._label += data

    def section(self, heading: str) -> str:
        """Return the text from one heading to the next."""
        at = self.headings.index(heading)
        places = [*self.addresses, len(self.text)]
        return self.text[places[at] : places[at + 1]]


def create_container(
    names: Sequence[str],
    image: str = "an-image:1",
    state: str = "running",
    status: str = "Up 3 minutes",
    identity: str = "0123abcd",
) -> Container:
    """Return a container as an engine describes it."""
    return Container(identity, image, state, status, tuple(names))


class Engine:
    """A fake engine with containers or an error; counts its calls."""

    def __init__(self, *containers: Container, fault: Exception | None = None) -> None:
        self.containers = containers
        self.fault = fault
        self.asked = 0

    async def list_containers(self) -> Sequence[Container]:
        """Return the containers."""
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        return self.containers


async def _nothing(_: Guest, asked: ViewRequest) -> ViewResponse:
    return ViewResponse(b"text/plain", asked.name.encode())


def read_page(client: Client) -> Page:
    """Return the page at `/`."""
    response = client.get("/")
    assert response.status == 200, response.body
    return Page(response.body.decode())


def create_client(
    guest: Guest, engine: Engine, loop: asyncio.AbstractEventLoop, *paths: str
) -> Client:
    """Return a client of a guest's pages, with an engine and other views."""
    guest.containers = untyped(engine)
    others = {path: View(_nothing, named=path.endswith("/")) for path in paths}
    app = RpcApp(guest, [SERVICE], views=listener_apps.make_views(guest, others))
    return Client(app, loop)
