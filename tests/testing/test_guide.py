"""The tables of docs/testing.md are what the code has; its tests run as a page, see tests/docs."""

import inspect
import re
from pathlib import Path

import pytest

from attestkit.testing import SimulatedTee

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "testing.md"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="docs/testing.md is not here")


def test_the_table_has_all_of_a_tee() -> None:
    """Every public name but those that the text does not need, and no other."""
    table = GUIDE.read_text().partition("| of a TEE |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`\.([a-z_]+)", table))
    there = {name for name, _ in inspect.getmembers(SimulatedTee) if not name.startswith("_")}
    assert named == there - {"close", "simulated", "simulator"}


def test_the_text_has_all_options() -> None:
    """`tee_factory` takes what a SimulatedTee does."""
    text = GUIDE.read_text()
    names = set(inspect.signature(SimulatedTee).parameters) - {"surroundings", "options"}
    for name in names:
        assert f"`{name}`" in text, name
