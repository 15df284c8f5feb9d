"""docs/glossary.md and docs/faq.md name what there is: Python's names, and tests."""

import re
from importlib import import_module
from pathlib import Path

import pytest

import attestkit

ROOT = Path(__file__).resolve().parents[1]
GLOSSARY = ROOT / "docs/glossary.md"
QUESTIONS = ROOT / "docs/faq.md"

pytestmark = pytest.mark.skipif(not GLOSSARY.exists(), reason="docs/glossary.md is not here")


def _found(name: str) -> object:
    """Return what a dotted name stands for, modules on its way loaded."""
    value: object = attestkit
    path = "attestkit"
    for part in name.removeprefix("attestkit.").split("."):
        path = f"{path}.{part}"
        value = getattr(value, part) if hasattr(value, part) else import_module(path)
    return value


def test_the_glossarys_names_are_there() -> None:
    """Each name in its last column is one of attestkit's: a class, a field, a module."""
    cells = [row.rstrip(" |").rsplit("|", 1)[-1] for row in GLOSSARY.read_text().splitlines()]
    names = re.findall(r"`((?:attestkit\.|[A-Z])[\w.]+)`", "\n".join(cells))
    assert len(names) > 40
    for name in names:
        assert _found(name) is not None, name


def test_the_glossary_is_in_order() -> None:
    """A word is where one looks for it."""
    words = re.findall(r"^\| ([^|]+?) \|", GLOSSARY.read_text(), re.MULTILINE)[1:]
    assert words == sorted(words, key=str.casefold)


def test_the_tests_that_answers_name_are_there() -> None:
    """Each test or folder of tests that an answer rests on exists."""
    named = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", QUESTIONS.read_text())
    assert len(named) > 8
    for file, test in named:
        path = ROOT / file
        assert path.exists(), file
        assert not test or f"def {test}(" in path.read_text(), test
