"""Tests of the index and READMEs of the examples."""

import ast
import re
from pathlib import Path

import pytest

from tests.examples.reader import EXAMPLES

ALL = sorted(path for path in EXAMPLES.iterdir() if path.is_dir() and (path / "README.md").exists())
EXAMPLE_FOLDERS = [
    path for path in ALL if path.name != "backend_plugin"
]  # backend_plugin has another kind of README
PROGRAMS = [
    *EXAMPLES.glob("*.py"),
    *(file for path in EXAMPLE_FOLDERS for file in path.glob("*.py")),
]


def test_example_index_lists_every_example() -> None:
    """The index has exactly one line for each example."""
    index = (EXAMPLES / "README.md").read_text()
    listed = re.findall(r"^\| \[(\w+)\]\((\w+)\) \|", index, re.MULTILINE)
    assert sorted(listed) == [(path.name, path.name) for path in ALL]


@pytest.mark.parametrize("path", EXAMPLE_FOLDERS, ids=lambda path: path.name)
def test_example_readme_has_required_sections(path: Path) -> None:
    """A README has commands, the differences on hardware, and the limits of protection."""
    readme = (path / "README.md").read_text()
    heads = re.findall(r"^## (.*)$", readme, re.MULTILINE)
    assert heads == ["On hardware", "Limits"]
    assert "```sh\n" in readme.split("## ")[0]
    links = re.findall(r"\]\(([^)#:]+)\)", readme)
    assert all((path / link).exists() for link in links), links


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_example_program_is_short_and_uses_public_api(path: Path) -> None:
    """A program has at most 160 lines, and imports no private module."""
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
def test_example_verifier_requires_policy(path: Path) -> None:
    """A program with --trust-anchor requires a policy, and makes the anchor optional."""
    text = path.read_text()
    if '"--trust-anchor"' in text:
        assert re.search(r'"--policy", type=Path, required=True', text)
        assert not re.search(r'"--trust-anchor"[^)]*required', text)
