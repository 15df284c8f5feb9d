"""The site builds without warnings, loads nothing from other hosts, and fits any screen."""

import functools
import json
import os
import re
import threading
from collections.abc import Iterator
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest

from tests.docs.blocks import ROOT
from tests.packaging.environments import alone
from tests.processes import run_program
from tests.rigs.browser.chromium import MARKS, open_browser

PATIENCE: Final = 900  # seconds: the first run installs the site's tools
PHONE, DESK = 390, 1440
INDEX: Final = "search/search_index.json"
UNREACHABLE: Final = re.compile(
    r"No matching distribution|Could not find a version|Temporary failure in name"
)
# Markup that a browser loads automatically, unlike a link.
FETCHES: Final = (
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc=\"?([^\"\s>]+)",
    r"<link\b(?![^>]*rel=\"?(?:canonical|next|prev|edit)\b)[^>]*?\bhref=\"?([^\"\s>]+)",
    r"url\([\"']?(?!data:)([^\"')]+)",
    r"@import\s+[\"']([^\"']+)",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(shared: Path) -> Path:
    """The site, built by `make docs` into a folder of its own; workers share it."""
    folder, log = shared / "site", shared / "site.log"
    with alone(shared / "site.lock"):
        if not log.exists():
            log.write_text(_build(folder))
    if UNREACHABLE.search(log.read_text()):
        pytest.skip("no index has what builds the site")
    assert (folder / "index.html").exists(), log.read_text()
    complaints = re.findall(r"^(?:WARNING|ERROR).*", log.read_text(), re.MULTILINE)
    assert complaints == []
    return folder


def _build(folder: Path) -> str:
    """Build the site; return what it prints, with an error if it fails."""
    ours = ("PYTHON", "VIRTUAL_ENV", "MAKE", "PYTEST")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = run_program(
        "make", "docs", f"ARGS=build --site-dir {folder}", cwd=ROOT, env=environ, timeout=PATIENCE
    )
    failed = f"ERROR: exit status {done.returncode}\n{done.stdout}" if done.returncode else ""
    return done.stderr + failed


def built(site: Path) -> list[Path]:
    """Return the pages of the site, except for the error page."""
    return sorted(set(site.rglob("*.html")) - {site / "404.html"})


def test_files_load_nothing_from_other_hosts(site: Path) -> None:
    """Pages and styles load nothing from other hosts; scripts are tested in the browser."""
    for path in [*built(site), *site.rglob("*.css"), *site.rglob("*.svg")]:
        text = unescape(path.read_text())
        for pattern in FETCHES:
            strangers = [
                found for found in re.findall(pattern, text) if re.match(r"(?:\w+:)?//", found)
            ]
            assert strangers == [], path


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Do not log."""


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    """Serve the site on a free port; return its URL."""
    handler = functools.partial(_Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    with open_browser() as opened:
        yield opened


@pytest.mark.rig
@MARKS[1]
@pytest.mark.parametrize(("scheme", "width"), [("light", DESK), ("dark", PHONE)])
def test_pages_render_in_browser(
    browser: Any, site: Path, url: str, scheme: str, width: int
) -> None:
    """No page loads from another host, logs, scrolls sideways or lacks an image.

    They also render without scripts, as the pages on a wide screen do here.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme=scheme,
        java_script_enabled=width == PHONE,
    )
    index = json.loads((site / INDEX).read_text())
    index["docs"] = index["docs"][:1]
    tab = context.new_page()
    strangers: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda asked: strangers.append(asked.url) if _is_strange(asked, url) else 0)
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    try:
        for number, page in enumerate(built(site)):
            if number == 1:  # one page has read the search index, which takes half of its time
                context.route(f"**/{INDEX}", lambda route: route.fulfill(json=index))
            name = page.relative_to(site).as_posix()
            answer = tab.goto(f"{url}{name}")
            assert (answer.status, complaints, strangers) == (200, [], []), name
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, name
            broken = tab.evaluate("[...document.images].filter(i => !i.naturalWidth).length")
            assert broken == 0, name
    finally:
        context.close()


def _is_strange(asked: Any, url: str) -> bool:
    return not asked.url.startswith((url, "data:", "blob:"))
