"""The README's links, commands and table are valid; tests/docs runs its blocks."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TOUR = ROOT / "docs" / "tour.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="the README is not here")


def test_commands_are_makefile_targets() -> None:
    """Each `make` command of the README is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", README.read_text() + TOUR.read_text()))
    assert {"serve", "test"} <= named <= targets


def test_table_of_peers_matches_page() -> None:
    """Each row is also in docs/peers.md, which explains its marks."""
    found = re.search(r"## Comparison\n+((?:\|.*\n)+)", README.read_text())
    assert found is not None
    page = re.sub(r" \([a-e]\)", "", (ROOT / "docs" / "peers.md").read_text()).splitlines()
    assert len(rows := found[1].splitlines()) > 10
    assert not set(rows) - set(page)


def test_linked_files_exist() -> None:
    """The files and pictures that README and tour link to exist."""
    for page in (README, TOUR):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
