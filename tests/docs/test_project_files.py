"""Project files for users and contributors are well-formed and correct."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit._formats import toml
from tests.runner.cases import every_case

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
CHANGES = ROOT / "CHANGELOG.md"
_FOLDERS: Final = ("attestkit", "tests", "benchmarks", "fuzz", "deploy", "docs")
_KINDS: Final = {".py", ".pyi", ".c", ".h", ".md"}
# Neither the rest of a URL, of a longer path or of a composed name, nor the text of a link.
_PAGE: Final = re.compile(r'(?<![\w/.:}[-])("?)((?:\.\./)*)([\w-][\w./-]*\.md)\b("?)')
HOW_TO = sorted((ROOT / "docs/project/how-to").glob("*.md"))
_PATH = re.compile(r"`((?:attestkit|docs|fuzz|tests)/[\w./-]+)`")
yaml = importlib.import_module("yaml")  # ships no types

pytestmark = pytest.mark.skipif(not GITHUB.exists(), reason="this is not a checkout")


def _project() -> dict[str, Any]:
    found: dict[str, Any] = toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]
    return found


def test_citation_has_this_version() -> None:
    """Name, version and licence are the package's."""
    cited, project = yaml.safe_load((ROOT / "CITATION.cff").read_text()), _project()
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert cited["title"] == project["name"]


def test_changelog_begins_with_this_version() -> None:
    """The newest version is first."""
    heads = re.findall(r"^## (.+)$", CHANGES.read_text(), re.MULTILINE)
    assert heads[0].startswith(f"[{_project()['version']}] ")


def test_workflow_calls_ci_script() -> None:
    """The workflow calls .ci/run, has read permissions only, and has a time limit."""
    text = (GITHUB / "workflows" / "ci.yml").read_text()
    flow = yaml.safe_load(text)
    assert flow["permissions"] == {"contents": "read"}
    [job] = flow["jobs"].values()
    assert 0 < job["timeout-minutes"] <= 90
    assert job["steps"][-1]["run"] == "bash .ci/run"
    assert "secrets." not in text
    options = job["container"]["options"]
    assert all(f"--cap-add {name}" in options for name in ("SYS_ADMIN", "NET_ADMIN"))


@every_case("page", HOW_TO, ids=lambda page: page.stem)
def test_files_of_a_how_to_page_exist(page: Path) -> None:
    """Each file or folder in code font is in the checkout."""
    named = _PATH.findall(page.read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def _citations() -> Iterator[tuple[str, str, bool]]:
    """Yield file and page of each citation, and whether the repository has that page.

    A page is named from the root of the repository; documentation may also name it from the folder
    of the file, as links do. A string of code that is nothing but a name is an argument.
    """
    for path in (path for folder in _FOLDERS for path in (ROOT / folder).rglob("*")):
        if path.suffix not in _KINDS or "node_modules" in path.parts:
            continue
        if ".md" not in (text := path.read_text(encoding="utf-8")):
            continue
        is_page = path.suffix == ".md"
        for before, up, page, behind in _PAGE.findall(text):
            if is_page or not (before and behind):
                found = (ROOT / page).is_file() or (is_page and (path.parent / up / page).is_file())
                yield path.relative_to(ROOT).as_posix(), up + page, found


def test_cited_pages_are_in_the_repository() -> None:
    """A reader of a docstring, comment or page can open every page that it names."""
    cited = list(_citations())
    assert len(cited) > 400
    assert [(file, page) for file, page, found in cited if not found] == []
