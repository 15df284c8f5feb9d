"""The pages of docs/project/how-to name files that exist."""

import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

PAGES = sorted((ROOT / "docs/project/how-to").glob("*.md"))
_PATH = re.compile(r"`((?:attestkit|docs|fuzz|tests)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_of_a_page_exist(page: Path) -> None:
    """Each file or folder in code font is in the checkout."""
    named = _PATH.findall(page.read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
