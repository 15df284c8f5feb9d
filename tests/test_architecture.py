"""docs/architecture.md and its picture show the imports of the code as they are."""

from collections import Counter

import pytest

from tests import architecture
from tests.records import ROOT

LARGEST = 15  # files of a folder

pytestmark = pytest.mark.skipif(not architecture.PAGE.exists(), reason="the page is not here")


def test_the_page_is_what_the_code_gives() -> None:
    """Table and circles are of this tree; `make architecture` brings them up to date."""
    text = architecture.PAGE.read_text()
    assert text == architecture.page(text)
    assert text.count(architecture.BEGIN) == text.count(architecture.END) == 1


def test_the_picture_is_what_the_code_gives() -> None:
    """So is the matrix."""
    assert architecture.PICTURE.read_text() == architecture.picture()


def test_parts_import_only_what_is_in_layers_below() -> None:
    """No dot is on the diagonal's other side, nor between two parts of one layer but the top."""
    layer = {part.name: part.layer for part in architecture.parts()}
    found = {pair for pair in architecture.imports() if set(pair) <= layer.keys()}
    assert ("verifier", "attestation") in found
    assert [(user, used) for user, used in found if layer[user] >= layer[used]] == []


def test_no_modules_import_each_other() -> None:
    """Nor inside of functions, nor by way of others: for type checkers alone they may."""
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
