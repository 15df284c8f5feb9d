"""HTML report in Chromium: self-contained, without console messages, responsive."""

from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.__main__ import main
from tests.cli import evidence_files
from tests.cli.commands.test_gpus import NONCE, trusted
from tests.cli.commands.test_report_gpus import make
from tests.cli.evidence_files import Files
from tests.rigs.browser.chromium import MARKS, open_tab

pytestmark = [*MARKS, pytest.mark.slow]
WINDOWS: Final = [(1280, 900), (390, 844)]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Write valid evidence in each format, with its trust anchor and collateral."""
    return evidence_files.write(tmp_path)


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page of eight GPUs with four switches."""
    folder = make(tmp_path_factory.mktemp("gpus"), "gpus=8")
    words = [f"{folder / 'evidence'}", *trusted(folder), "--nonce", NONCE]
    assert main(["report", *words, "-o", f"{folder / 'page.html'}"]) == 0
    return folder / "page.html"


@pytest.mark.parametrize(("width", "height"), WINDOWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_of_gpus_fit(
    browser: Any, gpus: Path, *, width: int, height: int, scheme: str
) -> None:
    """Each measurement has a visible cell, the page's policy allows the pictures, and they fit."""
    window = {"width": width, "height": height}
    options: dict[str, Any] = {"viewport": window, "color_scheme": scheme, "offline": True}
    with open_tab(browser, gpus.as_uri(), **options) as tab:
        assert tab.requests == [gpus.as_uri()]
        assert tab.fits()
        assert tab.page.locator(".cells").count() == 12
        cell = tab.page.locator(".cells .matched rect").first
        assert cell.is_visible()
        assert cell.evaluate("node => getComputedStyle(node).fill") != "rgb(0, 0, 0)"
        assert tab.page.locator(".links line").count() == 32


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
    window = {"width": width, "height": height}
    options: dict[str, Any] = {"viewport": window, "color_scheme": scheme, "offline": True}
    with open_tab(browser, page.as_uri(), **options) as tab:
        assert tab.requests == [page.as_uri()]
        assert tab.fits()
        assert tab.page.locator("h1").inner_text() == headline
        assert tab.page.locator("h1").is_visible()
        tab.page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
        bar = tab.page.locator(".bar")  # the page's policy allows its style
        assert bar.bounding_box()["y"] == 0
        assert bar.evaluate("node => getComputedStyle(node).position") == "sticky"


def test_report_timeline_works_without_scripts(browser: Any, files: Files) -> None:
    """Events can be expanded and collapsed."""
    page, _ = _page(files, "good")
    with open_tab(browser, page.as_uri(), java_script_enabled=False, offline=True) as tab:
        first = tab.page.locator("details").first
        event = first.locator("li").first
        was = event.is_visible()
        first.locator("summary").click()
        assert event.is_visible() != was
