"""Headless Chromium for rigs that check pages."""

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any, Final

import pytest

ROUND: Final = 5100  # ms, slightly more than the fetch interval of the dashboard
_CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING: Final = [
    what
    for what, there in {
        "chromium": _CHROMIUM is not None,
        "playwright": importlib.util.find_spec("playwright") is not None,
    }.items()
    if not there
]
MARKS: Final = [
    pytest.mark.rig,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
"""Marks of such rigs."""


@contextlib.contextmanager
def open_browser() -> Iterator[Any]:
    """Run Chromium until the end of the block."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=_CHROMIUM, args=flags)
        yield opened
        opened.close()


class Tab:
    """Tab with its console messages and requests."""

    def __init__(self, context: Any, url: str, *, clock: bool = False) -> None:
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.url = url
        self.page = context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: self.messages.append(dialog.message))
        if clock:
            self.page.clock.install()
        self.page.goto(url)

    def count_fetches(self) -> int:
        """Return how often the page was requested; a browser requests its icon at any time."""
        return self.requests.count(self.url)

    def wait_round(self) -> None:
        """Advance the clock by a fetch interval, and wait until the page has the response."""
        was = self.page.locator("#foot time").inner_text()
        with self.page.expect_response(self.url) as answer:
            self.page.clock.run_for(ROUND)
        now = answer.value.text().partition("<time")[2].partition(">")[2].partition(" UTC")[0]
        self.page.wait_for_function(
            "now => document.querySelector('#foot time').textContent.startsWith(now)", arg=now
        )
        assert was

    def hide(self, *, hidden: bool) -> None:
        """Simulate that the tab is hidden or visible."""
        self.page.evaluate(
            "value => { Object.defineProperty(document, 'hidden', {value, configurable: true});"
            " document.dispatchEvent(new Event('visibilitychange')); }",
            hidden,
        )

    def check(self) -> None:
        """Assert that the page wrote nothing to the console and sent nothing to other hosts."""
        assert self.messages == []
        assert all(url.startswith(self.url) for url in self.requests), self.requests

    def fits(self) -> bool:
        """Return whether the page needs no horizontal scrolling."""
        fits: bool = self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        return fits


@contextlib.contextmanager
def open_tab(browser: Any, url: str, *, clock: bool = False, **options: Any) -> Iterator[Tab]:
    """Open a page in its own context; assert that it has no console messages at the end."""
    context = browser.new_context(**options)
    try:
        tab = Tab(context, url, clock=clock)
        yield tab
        tab.check()
    finally:
        context.close()
