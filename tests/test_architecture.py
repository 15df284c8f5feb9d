"""docs/architecture.md and its picture show the actual imports."""

from collections import Counter

import pytest

from tests import architecture
from tests.records import ROOT

LARGEST = 15  # files in a folder

pytestmark = pytest.mark.skipif(not architecture.PAGE.exists(), reason="the page is not here")


def test_page_matches_code() -> None:
    """Table and cycles match this tree; `make architecture` regenerates them."""
    text = architecture.PAGE.read_text()
    assert text == architecture.page(text)
    assert text.count(architecture.BEGIN) == text.count(architecture.END) == 1


def test_picture_matches_code() -> None:
    """The matrix matches this tree."""
    assert architecture.PICTURE.read_text() == architecture.picture()


def test_parts_import_lower_layers_only() -> None:
    """A part imports from lower layers only, not from another part of its layer but the top."""
    layer = {part.name: part.layer for part in architecture.parts()}
    found = {pair for pair in architecture.imports() if set(pair) <= layer.keys()}
    assert ("verifier", "attestation") in found
    assert [(user, used) for user, used in found if layer[user] >= layer[used]] == []


def test_no_modules_import_each_other() -> None:
    """No cycles, also by imports inside of functions; imports for type checkers are exempt."""
    assert architecture.circles() == []


def test_folders_are_small() -> None:
    """A folder has at most fifteen files, but for the C core and the commands."""
    counts = Counter(
        path.parent
        for path in (ROOT / architecture.PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    large = {path.name: count for path, count in counts.items() if count > LARGEST}
    assert large.keys() <= {"_native", "commands"}, large
