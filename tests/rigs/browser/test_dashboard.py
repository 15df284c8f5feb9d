"""Dashboard in Chromium: layout, keyboard, updates and hostile content.

The page's clock is controlled by the test, so that nothing waits.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.rigs.browser.chromium import MARKS, ROUND, Tab, open_tab
from tests.rigs.browser.dashboard_server import HOSTILE
from tests.serve.client import call
from tests.serve.server import PATIENCE, ROOT, Server, environment, running_server

pytestmark = [*MARKS, pytest.mark.slow]
WINDOWS: Final = [(1440, 900), (360, 780)]
SCHEMES: Final = ["light", "dark"]

# Texts whose contrast with the background is below WCAG AA.
PALE: Final = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => parts(color).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (parts(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const pale = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text; (text = walker.nextNode()); ) {
    const node = text.parentElement;
    if (!text.nodeValue.trim() || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const [a, b] = [light(style.color), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) pale.push([node.tagName, ratio, text.nodeValue]);
  }
  return pale;
}"""
FOCUSED: Final = """() => {
  const node = document.activeElement;
  if (node === document.body) return null;
  const box = node.getBoundingClientRect();
  const style = getComputedStyle(node);
  return {
    what: node.id || node.getAttribute("href") || node.getAttribute("aria-label") || node.tagName,
    seen: box.width > 0 && box.top >= 0 && box.bottom <= innerHeight + 1
      || box.height > innerHeight,
    ring: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
  };
}"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run a server that publishes everything."""
    with running_server() as server:
        yield server
        server.check_log()


@contextlib.contextmanager
def hostile_server(*options: str) -> Iterator[str]:
    """Run a server with hostile names; return its URL."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.rigs.browser.dashboard_server", *options],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0


def _emit(server: Server, name: str) -> None:
    assert call(server.dstack, "EmitEvent", {"event": name, "payload": "00ff"}).status == 200


@pytest.mark.parametrize(("width", "height"), WINDOWS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_dashboard_fits_and_is_readable(
    browser: Any,
    server: Server,
    width: int,
    height: int,
    scheme: str,
) -> None:
    """No horizontal scrolling, contrast AA, the requested scheme, a visible simulation notice."""
    window = {"width": width, "height": height}
    with open_tab(browser, f"{server.url}/", viewport=window, color_scheme=scheme) as tab:
        page = tab.page
        assert page.title() == "Worker Information"
        assert page.locator("h1").inner_text() == "Node Information"
        assert tab.fits()
        assert page.evaluate(PALE) == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(247, 246, 242)", "dark": "rgb(22, 21, 18)"}[scheme]
        assert page.get_by_text("This TEE is simulated").is_visible()
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        bar = page.locator("header").bounding_box()
        assert bar is not None
        assert bar["y"] == 0
        assert page.get_by_text("Simulated", exact=True).is_visible()
        loaded = {url.removeprefix(server.url).partition("?")[0] for url in tab.requests}
        assert {"/", "/assets/dashboard.css", "/assets/dashboard.js"} <= loaded


def test_dashboard_links_resolve(browser: Any, server: Server) -> None:
    """Each is a part of the page, or another served page."""
    with open_tab(browser, f"{server.url}/") as tab:
        links = tab.page.locator("a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
        assert {"#content", "#timeline", "/metrics", "/prpc/Worker.Info"} <= set(links)
        for link in links:
            if link.startswith("#"):
                tab.page.goto(f"{server.url}/{link}")
                assert tab.page.locator(link).is_visible()
            else:
                assert tab.page.request.get(f"{server.url}{link}").status == 200
        tab.check()
        tab.page.get_by_role("link", name="/prpc/Worker.Info").last.click()
        assert "app_name" in tab.page.content()
        tab.messages.clear()  # a browser requests an icon for other documents


@pytest.mark.parametrize(("width", "height"), WINDOWS)
def test_dashboard_keyboard_navigation(
    browser: Any, server: Server, width: int, height: int
) -> None:
    """Tab reaches each control in order, visible and with a focus ring, without a trap."""
    window = {"width": width, "height": height}
    with open_tab(browser, f"{server.url}/", viewport=window) as tab:
        page = tab.page
        page.keyboard.press("Tab")
        assert page.evaluate(FOCUSED) == {"what": "#content", "seen": True, "ring": True}
        seen = []
        while (focused := page.evaluate(FOCUSED)) is not None:
            assert focused["seen"], focused
            assert focused["ring"], focused
            seen.append(focused["what"])
            assert len(seen) < 100
            page.keyboard.press("Tab")
        reachable = page.locator("a, button, summary, textarea").count()
        assert len(seen) == reachable
        assert seen.index("live-toggle") < seen.index("Copy App ID") < seen.index("Copy RTMR3")
        page.keyboard.press("Tab")  # around to the first control
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "content"
        summary = page.locator("#boot > summary")
        summary.focus()
        page.keyboard.press("Space")
        assert not page.locator("#boot li").first.is_visible()


def test_dashboard_updates_and_keeps_reader_state(browser: Any, server: Server) -> None:
    """A new event appears within a fetch interval."""
    with open_tab(browser, f"{server.url}/", clock=True) as tab:
        page = tab.page
        events, register = page.locator("#runtime li"), page.locator("[data-copy=RTMR3]")
        count, value = events.count(), register.inner_text()
        page.locator("#boot > summary").click()
        page.evaluate("document.getElementById('tcb-text').scrollTop = 100")
        page.evaluate("document.getElementById('tcb-text').style.height = '400px'")
        page.get_by_label("Copy RTMR0").focus()
        page.evaluate("scrollTo(0, 600)")
        page.evaluate("getSelection().selectAllChildren(document.querySelector('h1'))")
        _emit(server, "while-you-look")
        tab.wait_round()
        assert events.count() == count + 1
        assert "while-you-look" in events.last.inner_text()
        assert register.inner_text() != value
        assert register.inner_text().replace(" ", "") in page.locator("textarea").input_value()
        assert page.locator("#boot").get_attribute("open") is None
        assert page.evaluate("document.getElementById('tcb-text').scrollTop") == 100
        assert page.evaluate("document.getElementById('tcb-text').style.height") == "400px"
        assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Copy RTMR0"
        assert page.evaluate("scrollY") == 600
        assert page.evaluate("getSelection().toString()") == "Node Information"
        assert page.locator(".copy").count() == 10
        assert page.locator("#live-state").inner_text() == "Live"
        assert tab.fits()


@pytest.mark.parametrize(("motion", "animation"), [("no-preference", "fresh"), ("reduce", "none")])
def test_dashboard_marks_new_events(
    browser: Any,
    server: Server,
    motion: str,
    animation: str,
) -> None:
    """They fade in, unless the reader prefers reduced motion."""
    with open_tab(browser, f"{server.url}/", clock=True, reduced_motion=motion) as tab:
        _emit(server, f"marked-{motion}")
        tab.wait_round()
        last = tab.page.locator("#runtime li").last
        assert last.get_attribute("class") == "fresh"
        assert last.evaluate("node => getComputedStyle(node).animationName") == animation
        tab.wait_round()
        assert not last.get_attribute("class")


def test_dashboard_pause_button_stops_updates(browser: Any, server: Server) -> None:
    """Its label has the state."""
    with open_tab(browser, f"{server.url}/", clock=True) as tab:
        page = tab.page
        page.get_by_role("button", name="Pause").click()
        fetches = tab.count_fetches()
        _emit(server, "unseen")
        tab.hide(hidden=True)
        tab.hide(hidden=False)  # becoming visible does not resume
        page.clock.run_for(10 * ROUND)
        assert tab.count_fetches() == fetches
        assert page.locator("#live-state").inner_text() == "Paused"
        assert "unseen" not in page.locator("#runtime").inner_text()
        page.get_by_role("button", name="Resume").click()
        page.get_by_text("unseen").first.wait_for()
        assert page.locator("#live-state").inner_text() == "Live"


def test_dashboard_hidden_tab_makes_no_requests(browser: Any, server: Server) -> None:
    """It updates at once when visible."""
    with open_tab(browser, f"{server.url}/", clock=True) as tab:
        tab.hide(hidden=True)
        fetches = tab.count_fetches()
        _emit(server, "while-hidden")
        tab.page.clock.run_for(10 * ROUND)
        assert tab.count_fetches() == fetches
        tab.hide(hidden=False)
        tab.page.get_by_text("while-hidden").first.wait_for()


def test_dashboard_reports_lost_server(browser: Any, server: Server) -> None:
    """The page shows the time of its data, and recovers."""
    context = browser.new_context(viewport={"width": 360, "height": 780})
    try:
        tab = Tab(context, f"{server.url}/", clock=True)
        page = tab.page
        context.set_offline(True)
        page.clock.run_for(ROUND)
        page.get_by_text("Lost the server (no connection); as of 20").wait_for()
        assert page.get_by_text("App Name").is_visible()
        assert tab.fits()
        assert page.evaluate(PALE) == []
        context.set_offline(False)
        tab.wait_round()
        assert page.locator("#live-state").inner_text() == "Live"
        # The browser logs the failed request, and nothing else.
        assert all("ERR_INTERNET_DISCONNECTED" in text for text in tab.messages)
    finally:
        context.close()


def test_dashboard_copy_button_copies_the_value(browser: Any, server: Server) -> None:
    """The spaces of the display are omitted."""
    clipboard = ["clipboard-read", "clipboard-write"]
    with open_tab(browser, f"{server.url}/", permissions=clipboard) as tab:
        page = tab.page
        page.get_by_label("Copy MRTD").click()
        page.get_by_text("Copied").wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert len(bytes.fromhex(copied)) == 48
        assert f'"mrtd": "{copied}"' in page.locator("textarea").input_value()


@pytest.mark.parametrize(("width", "height"), WINDOWS)
def test_dashboard_hostile_names_stay_text(browser: Any, width: int, height: int) -> None:
    """After updates, too; the layout is unchanged."""
    window = {"width": width, "height": height}
    with (
        hostile_server() as url,
        open_tab(browser, url, clock=True, viewport=window) as tab,
    ):
        page = tab.page
        for _ in range(2):
            assert page.title() == "Worker Information"
            assert page.locator("script").count() == 1
            foreign = "img, iframe, object, [onerror], [onfocus], [autofocus]"
            assert page.locator(foreign).count() == 0
            assert page.locator("#containers tbody tr").count() == len(HOSTILE)
            assert page.locator("td", has_text=HOSTILE[0]).count() >= 3
            assert page.locator("textarea").count() == 1
            assert tab.fits()
            assert page.evaluate(PALE) == []
            tab.wait_round()
        links = page.locator("td.logs a").evaluate_all("all => all.map(a => a.href)")
        assert len(links) == 2 * len(HOSTILE)
        for link, name in zip(links[::2], HOSTILE, strict=True):
            answer = page.request.get(link)  # a browser would download what contains NUL
            assert (answer.status, answer.text()) == (200, name[:1024])  # the limit of a name


def test_dashboard_follows_container_engine(browser: Any) -> None:
    """Containers disappear with the engine; its errors stay text."""
    with hostile_server("--failing") as url, open_tab(browser, url, clock=True) as tab:
        rows = tab.page.locator("#containers tbody tr")
        trouble = tab.page.get_by_text("The container engine is unavailable.")
        for _ in range(2):
            assert (rows.count(), trouble.count()) == (len(HOSTILE), 0)
            _wait_for_engine_request(tab)
            assert (rows.count(), trouble.count()) == (0, 1)
            _wait_for_engine_request(tab)


def _wait_for_engine_request(tab: Tab) -> None:
    """Wait until the engine was requested again, which happens once per second of its clock."""
    before = tab.page.locator("#containers").inner_text()
    for _ in range(200):
        tab.wait_round()
        if tab.page.locator("#containers").inner_text() != before:
            return
    raise AssertionError("no further request to the engine")


def test_dashboard_without_measurements_is_complete(browser: Any) -> None:
    """Updates do not change that."""
    with hostile_server("--hidden") as url, open_tab(browser, url, clock=True) as tab:
        tab.wait_round()
        assert tab.page.get_by_text("TCB info is not public").is_visible()
        assert tab.page.locator("textarea, #timeline, #registers, a[href='#timeline']").count() == 0
        assert tab.fits()


def test_dashboard_works_without_scripts(browser: Any, server: Server) -> None:
    """All content is present and can be collapsed; script-only controls are hidden."""
    with open_tab(browser, f"{server.url}/", java_script_enabled=False) as tab:
        page = tab.page
        assert page.locator("[data-copy=RTMR3]").is_visible()
        assert page.locator("#runtime li").last.is_visible()
        assert not page.locator("button").first.is_visible()
        page.locator("#runtime > summary").click()
        assert not page.locator("#runtime li").last.is_visible()
