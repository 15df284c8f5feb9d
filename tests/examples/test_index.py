"""The examples are what their index and READMEs promise them to be."""

import ast
import re
from pathlib import Path

import pytest

from tests.examples.reader import EXAMPLES

ALL = sorted(path for path in EXAMPLES.iterdir() if path.is_dir() and (path / "README.md").exists())
OURS = [path for path in ALL if path.name != "backend_plugin"]  # whose README is another kind
PROGRAMS = [*EXAMPLES.glob("*.py"), *(file for path in OURS for file in path.glob("*.py"))]


def test_the_index_has_each_example() -> None:
    """In one line, and nothing that is not there."""
    index = (EXAMPLES / "README.md").read_text()
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\) \|", index, re.MULTILINE)
    assert sorted(listed) == [(path.name, path.name) for path in ALL]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_a_readme_says_what_a_reader_must_know(path: Path) -> None:
    """How to run it, what hardware changes, and what it does not protect from."""
    readme = (path / "README.md").read_text()
    heads = re.findall(r"^## (.*)$", readme, re.MULTILINE)
    assert heads == ["On hardware", "What it does not protect from"]
    assert "```sh\n" in readme.split("## ")[0]
    links = re.findall(r"\]\(([^)#:]+)\)", readme)
    assert all((path / link).exists() for link in links), links


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_program_is_a_reader_s_own(path: Path) -> None:
    """It is short, and imports nothing of attestkit that starts with an underscore."""
    text = path.read_text()
    assert len(text.splitlines()) <= 160
    imported = [
        *(
            node.module or ""
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ImportFrom)
        ),
        *(
            alias.name
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Import)
            for alias in node.names
        ),
    ]
    assert not [name for name in imported if "._" in name]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_verifier_asks_for_its_policy(path: Path) -> None:
    """Who has a --trust-anchor must be given a policy, and may leave the anchor out."""
    text = path.read_text()
    if '"--trust-anchor"' in text:
        assert re.search(r'"--policy", type=Path, required=True', text)
        assert not re.search(r'"--trust-anchor"[^)]*required', text)
