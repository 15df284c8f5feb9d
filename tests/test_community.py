"""Project files for users and contributors are well-formed and correct."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from attestkit._formats import toml

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "CONTRIBUTING.md"
GITHUB = ROOT / ".github"
CHANGES = ROOT / "CHANGELOG.md"
yaml = importlib.import_module("yaml")  # ships no types

pytestmark = pytest.mark.skipif(not GITHUB.exists(), reason="this is not a checkout")


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def _project() -> dict[str, Any]:
    found: dict[str, Any] = toml.decode((ROOT / "pyproject.toml").read_bytes())["project"]
    return found


def test_citation_has_this_version() -> None:
    """Version and licence are the package's; all fields that the schema requires are present."""
    cited, project = _read(ROOT / "CITATION.cff"), _project()
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert cited["title"] == project["name"]
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()


def test_changelog_begins_with_this_version() -> None:
    """The newest version is first; each has its release date or is unreleased."""
    heads = re.findall(r"^## (.+)$", CHANGES.read_text(), re.MULTILINE)
    assert all(re.fullmatch(r"\[[0-9.]+\] - (\d{4}-\d\d-\d\d|unreleased)", head) for head in heads)
    assert heads[0].startswith(f"[{_project()['version']}] ")
    kinds = re.findall(r"^### (.+)$", CHANGES.read_text(), re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_contributing_names_existing_files() -> None:
    """Each folder, file and `make` target that the guide names exists."""
    text = GUIDE.read_text()
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z]+)\b", text, re.MULTILINE)) <= set(targets)
    named = set(re.findall(r"`((?:[\w.]+/)+[\w.]*|\w+\.(?:py|md|toml|cff))`", text))
    assert len(named) > 20
    for name in named:
        assert any((base / name).exists() for base in (ROOT, ROOT / "attestkit")), name
    for link in re.findall(r"\]\(([^):#]+)\)", text):
        assert (ROOT / link).exists(), link


def test_every_folder_is_described() -> None:
    """Every folder at the root has a line in the guide."""
    folders = {path.name for path in ROOT.iterdir() if (path.is_dir() and path.name[0] != ".")}
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    kept = folders - {line.strip("/") for line in ignored if line.endswith("/")}
    assert kept == set(re.findall(r"^\| `(\w+)/`", GUIDE.read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", sorted(GITHUB.glob("ISSUE_TEMPLATE/*.yml")), ids=lambda p: p.name)
def test_issue_forms_are_valid(path: Path) -> None:
    """Each form has an input, and each input a unique id."""
    form = _read(path)
    if path.name == "config.yml":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= form.keys()
    asked = [field for field in form["body"] if field["type"] != "markdown"]
    assert asked
    assert len({field["id"] for field in asked}) == len(asked)
    assert all(field["attributes"]["label"] for field in asked)


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
