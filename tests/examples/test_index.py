"""Tests of the index and READMEs of the examples."""

import re
from pathlib import Path

from tests.examples.reader import EXAMPLES
from tests.runner.cases import every_case

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


@every_case("path", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_example_verifier_requires_policy(path: Path) -> None:
    """A program with --trust-anchor requires a policy, and makes the anchor optional."""
    text = path.read_text()
    if '"--trust-anchor"' in text:
        assert re.search(r'"--policy", type=Path, required=True', text)
        assert not re.search(r'"--trust-anchor"[^)]*required', text)
