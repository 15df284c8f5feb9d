"""docs/architecture.md and its picture show the imports of the code as they are."""

import pytest

from tests import architecture

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


def test_no_circle_leaves_its_package() -> None:
    """Modules that import each other are of one package, which one person can read at once."""
    for circle in architecture.circles():
        assert len({name.split(".")[1] for name in circle}) == 1, circle
