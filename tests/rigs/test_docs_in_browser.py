"""The page about the API in Chromium: it loads nothing, complains of nothing, fits its window."""

from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.rigs.browser import MARKS, open_browser
from tests.serve.bridge import bridge
from tests.serve.server import running_server

pytestmark = [*MARKS, pytest.mark.slow]


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    """Where the documents of each listener are, for a browser."""
    with (
        running_server("--dev-http", "127.0.0.1:0") as server,
        bridge(server.tappd) as tappd,
    ):
        yield {"http": server.url, "dev_http": server.dev_url, "tappd": tappd}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    with open_browser() as opened:
        yield opened


@pytest.mark.parametrize("listener", ["http", "dev_http", "tappd"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_the_page_stands_by_itself(
    browser: Any,
    urls: dict[str, str],
    listener: str,
    scheme: str,
    width: int,
) -> None:
    """One request; nothing on the console; no sideways scrolling; readable in both schemes."""
    url = f"{urls[listener]}/docs"
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=True
    )
    try:
        tab = context.new_page()
        requests: list[str] = []
        complaints: list[str] = []
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.goto(url)
        assert [asked for asked in requests if not asked.startswith("data:")] == [url]
        assert complaints == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        paper, ink = tab.evaluate(_COLOURS)
        assert (paper > ink) == (scheme == "light")
        assert abs(paper - ink) > 400  # of 765: the policy let the style in, and it can be read
        _check_keyboard(tab)
    finally:
        context.close()


_COLOURS: Final = """() => {
    const style = getComputedStyle(document.body);
    return [style.backgroundColor, style.color].map(
        colour => colour.match(/\\d+/g).slice(0, 3).map(Number).reduce((a, b) => a + b));
}"""


def _check_keyboard(tab: Any) -> None:
    """The first key leads to the link over the contents, the next into them."""
    tab.keyboard.press("Tab")
    skip = tab.locator(":focus")
    assert skip.inner_text() == "Skip to the methods"
    assert skip.bounding_box()["x"] >= 0
    tab.keyboard.press("Tab")
    assert tab.locator("nav :focus").inner_text() == "Encodings"
    tab.keyboard.press("Enter")
    tab.wait_for_url("**#encodings")
