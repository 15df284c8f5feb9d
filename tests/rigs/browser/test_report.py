"""HTML report in Chromium: self-contained, without console messages, responsive."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.__main__ import main
from tests.cli import evidence_files
from tests.cli.evidence_files import Files
from tests.rigs.browser.chromium import MARKS, open_browser

pytestmark = [*MARKS, pytest.mark.slow]
WINDOWS: Final = [(1280, 900), (390, 844)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Run headless Chromium without a network."""
    with open_browser() as opened:
        yield opened


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Write valid evidence in each format, with its trust anchor and collateral."""
    return evidence_files.write(tmp_path)


def _page(files: Files, kind: str) -> tuple[Path, str]:
    """Write the page of one type of evidence; return it and its headline."""
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
def test_report_page_is_self_contained(
    browser: Any,
    files: Files,
    *,
    kind: str,
    width: int,
    height: int,
    scheme: str,
) -> None:
    """One request, no console messages, no horizontal scrolling, and the verdict is visible."""
    page, headline = _page(files, kind)
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
    )
    try:
        tab = context.new_page()
        requests: list[str] = []
        messages: list[str] = []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.on("dialog", lambda dialog: messages.append(dialog.message))
        tab.goto(page.as_uri())
        assert requests == [page.as_uri()]
        assert messages == []
        seen = tab.evaluate("document.documentElement.scrollWidth")
        assert seen <= width
        assert tab.locator("h1").inner_text() == headline
        assert tab.locator("h1").is_visible()
        _check_style(tab)
    finally:
        context.close()


def _check_style(tab: Any) -> None:
    """Check that the page's policy allows its style, and that the verdict stays visible."""
    tab.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    bar = tab.locator(".bar").bounding_box()
    assert bar is not None
    assert bar["y"] == 0
    assert tab.evaluate("getComputedStyle(document.querySelector('.bar')).position") == "sticky"


def test_report_timeline_works_without_scripts(browser: Any, files: Files) -> None:
    """Events can be expanded and collapsed."""
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
