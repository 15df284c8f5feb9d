"""Headless Chromium for rigs that check pages."""

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any, Final

import pytest

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
