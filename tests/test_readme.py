"""The README's links, commands and table hold; its blocks run as a page, see tests/docs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TOUR = ROOT / "docs" / "tour.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not here")


def test_the_commands_are_the_makefile_s() -> None:
    """Each `make` word of the README is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", README.read_text() + TOUR.read_text()))
    assert {"serve", "test"} <= named <= targets


def test_the_table_of_peers_is_the_page_s() -> None:
    """Each row of the README's is one of docs/peers.md, where its marks are explained."""
    found = re.search(r"## Beside others\n+((?:\|.*\n)+)", README.read_text())
    assert found is not None
    page = re.sub(r" \([a-e]\)", "", (ROOT / "docs" / "peers.md").read_text()).splitlines()
    assert len(rows := found[1].splitlines()) > 10
    assert not set(rows) - set(page)


def test_what_is_linked_is_there() -> None:
    """Files and pictures that README and tour lead to."""
    for page in (README, TOUR):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
