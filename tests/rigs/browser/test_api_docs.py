"""API documentation in Chromium: self-contained, without console messages, responsive."""

from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.rigs.browser.chromium import MARKS, open_tab
from tests.serve.bridge import bridge
from tests.serve.server import running_server

pytestmark = [*MARKS, pytest.mark.slow]


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    """Return the URLs of each listener's documents."""
    with (
        running_server("--dev-http", "127.0.0.1:0") as server,
        bridge(server.tappd) as tappd,
    ):
        yield {"http": server.url, "dev_http": server.dev_url, "tappd": tappd}


@pytest.mark.parametrize("listener", ["http", "dev_http", "tappd"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_docs_page_is_self_contained(
    browser: Any,
    urls: dict[str, str],
    listener: str,
    scheme: str,
    width: int,
) -> None:
    """One request, no console messages, no horizontal scrolling, readable in both schemes."""
    url = f"{urls[listener]}/docs"
    window = {"width": width, "height": 900}
    with open_tab(browser, url, viewport=window, color_scheme=scheme) as tab:
        assert [address for address in tab.requests if not address.startswith("data:")] == [url]
        assert tab.fits()
        paper, ink = tab.page.evaluate(_COLOURS)
        assert (paper > ink) == (scheme == "light")
        assert abs(paper - ink) > 400  # of 765: the style is applied, and readable
        _check_keyboard(tab.page)


_COLOURS: Final = """() => {
    const style = getComputedStyle(document.body);
    return [style.backgroundColor, style.color].map(
        colour => colour.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b));
}"""


def _check_keyboard(tab: Any) -> None:
    """Check that the first Tab focuses the skip link, and the next the methods."""
    tab.keyboard.press("Tab")
    skip = tab.locator(":focus")
    assert skip.inner_text() == "Skip to the methods"
    assert skip.bounding_box()["x"] >= 0
    tab.keyboard.press("Tab")
    assert tab.locator("nav :focus").inner_text() == "Encodings"
    tab.keyboard.press("Enter")
    tab.wait_for_url("**#encodings")
