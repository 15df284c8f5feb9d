"""The report in Chromium: it loads nothing, complains about nothing, and fits its window."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.__main__ import main
from tests.cli import evidence_files
from tests.cli.evidence_files import Files
from tests.rigs.browser import MARKS, open_browser

pytestmark = [*MARKS, pytest.mark.slow]
WINDOWS: Final = [(1280, 900), (390, 844)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window and without a network."""
    with open_browser() as opened:
        yield opened


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good evidence in every form, and what it takes to believe it."""
    return evidence_files.write(tmp_path)


def _page(files: Files, kind: str) -> tuple[Path, str]:
    """Write the page of one kind of evidence; return it and its headline."""
    page = files.folder / "page.html"
    hostile = files.put("hostile", evidence_files.hostile_evidence().to_bytes())
    words, code, headline = {
        "good": ([str(files.evidence), *files.trusted], 0, "Accepted"),
        "bundle": ([str(files.bundle), *files.own_instant], 0, "Accepted"),
        "refused": ([str(files.evidence), *files.trusted[2:]], 2, "Rejected"),
        "hostile": ([str(hostile), *files.trusted], 2, "Rejected"),
    }[kind]
    assert main(["report", *words, "-o", str(page)]) == code
    return page, headline


@pytest.mark.parametrize("kind", ["good", "bundle", "refused", "hostile"])
@pytest.mark.parametrize(("width", "height"), WINDOWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_stands_by_itself(
    browser: Any,
    files: Files,
    *,
    kind: str,
    width: int,
    height: int,
    scheme: str,
) -> None:
    """One request, for the file; nothing on the console; no sideways scrolling; the verdict."""
    page, headline = _page(files, kind)
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
    )
    try:
        tab = context.new_page()
        requests: list[str] = []
        complaints: list[str] = []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append(dialog.message))
        tab.goto(page.as_uri())
        assert requests == [page.as_uri()]
        assert complaints == []
        seen = tab.evaluate("document.documentElement.scrollWidth")
        assert seen <= width
        assert tab.locator("h1").inner_text() == headline
        assert tab.locator("h1").is_visible()
        _check_style(tab)
    finally:
        context.close()


def _check_style(tab: Any) -> None:
    """The page's policy must have let its own style in, and the verdict must stay in sight."""
    tab.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    bar = tab.locator(".bar").bounding_box()
    assert bar is not None
    assert bar["y"] == 0
    assert tab.evaluate("getComputedStyle(document.querySelector('.bar')).position") == "sticky"


def test_a_timeline_opens_without_scripts(browser: Any, files: Files) -> None:
    """Scripts are off, and events can still be folded and unfolded."""
    page, _ = _page(files, "good")
    context = browser.new_context(java_script_enabled=False, offline=True)
    try:
        tab = context.new_page()
        tab.goto(page.as_uri())
        first = tab.locator("details").first
        event = first.locator("li").first
        was = event.is_visible()
        first.locator("summary").click()
        assert event.is_visible() != was
    finally:
        context.close()
