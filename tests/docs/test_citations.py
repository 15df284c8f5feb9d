"""Every page (`.md`) that code or documentation cites is in the repository."""

import re
from collections.abc import Iterator
from typing import Final

from tests.docs.blocks import ROOT

FOLDERS: Final = ("attestkit", "tests", "benchmarks", "fuzz", "deploy", "docs")
KINDS: Final = {".py", ".pyi", ".c", ".h", ".md"}
# Neither the rest of a URL, of a longer path or of a composed name, nor the text of a link.
_PAGE: Final = re.compile(r'(?<![\w/.:}[-])("?)((?:\.\./)*)([\w-][\w./-]*\.md)\b("?)')


def _citations() -> Iterator[tuple[str, str, bool]]:
    """Yield file and page of each citation, and whether the repository has that page.

    A page is named from the root of the repository; documentation may also name it from the folder
    of the file, as links do. A string of code that is nothing but a name is an argument.
    """
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*")):
        if path.suffix not in KINDS or ".md" not in (text := path.read_text(encoding="utf-8")):
            continue
        is_page = path.suffix == ".md"
        for before, up, page, behind in _PAGE.findall(text):
            if is_page or not (before and behind):
                found = (ROOT / page).is_file() or (is_page and (path.parent / up / page).is_file())
                yield path.relative_to(ROOT).as_posix(), up + page, found


def test_cited_pages_are_in_the_repository() -> None:
    """A reader of a docstring, comment or page can open every page that it names."""
    cited = list(_citations())
    assert len(cited) > 400
    assert [(file, page) for file, page, found in cited if not found] == []
