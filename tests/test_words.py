"""docs/glossary.md and docs/faq.md name existing Python objects and tests."""

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
    """Return the object of a dotted name, importing modules as needed."""
    value: object = attestkit
    path = "attestkit"
    for part in name.removeprefix("attestkit.").split("."):
        path = f"{path}.{part}"
        value = getattr(value, part) if hasattr(value, part) else import_module(path)
    return value


def test_glossary_names_exist() -> None:
    """Each name in the last column is a class, a field or a module of attestkit."""
    cells = [row.rstrip(" |").rsplit("|", 1)[-1] for row in GLOSSARY.read_text().splitlines()]
    names = re.findall(r"`((?:attestkit\.|[A-Z])[\w.]+)`", "\n".join(cells))
    assert len(names) > 40
    for name in names:
        assert _found(name) is not None, name


def test_glossary_is_sorted() -> None:
    """The entries are sorted."""
    words = re.findall(r"^\| ([^|]+?) \|", GLOSSARY.read_text(), re.MULTILINE)[1:]
    assert words == sorted(words, key=str.casefold)


def test_tests_named_in_answers_exist() -> None:
    """Each test or folder of tests that an answer cites exists."""
    named = re.findall(r"`(tests/[\w/.]+)(?:::(\w+))?`", QUESTIONS.read_text())
    assert len(named) > 8
    for file, test in named:
        path = ROOT / file
        assert path.exists(), file
        assert not test or f"def {test}(" in path.read_text(), test
