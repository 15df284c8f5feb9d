"""Tables of docs/testing.md: complete; its code runs in tests/docs."""

import inspect
import re
from pathlib import Path

import pytest

from attestkit.testing import SimulatedTee

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "testing.md"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="docs/testing.md is missing")


def test_guide_table_lists_all_public_names() -> None:
    """Except for names that the text does not need."""
    table = GUIDE.read_text().partition("| of a TEE |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`\.([a-z_]+)", table))
    there = {name for name, _ in inspect.getmembers(SimulatedTee) if not name.startswith("_")}
    assert named == there - {"close", "simulated", "simulator"}


def test_guide_text_lists_all_options() -> None:
    """`tee_factory` takes the options of SimulatedTee."""
    text = GUIDE.read_text()
    names = set(inspect.signature(SimulatedTee).parameters) - {"resources", "options"}
    for name in names:
        assert f"`{name}`" in text, name
