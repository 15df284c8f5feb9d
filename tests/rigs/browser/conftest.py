"""Browser shared by the tests of all pages."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.rigs.browser.chromium import open_browser


@pytest.fixture(scope="module")  # its event loop would disturb tests of other modules
def browser() -> Iterator[Any]:
    """Run headless Chromium."""
    with open_browser() as opened:
        yield opened
