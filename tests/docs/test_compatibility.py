"""docs/compatibility.md: each line about dstack names its tests, and the matrix has the clients."""

import re
from typing import Final

import pytest

from tests.docs.promises import NODE, ROOT, read_tests

PAGE: Final = ROOT / "docs/compatibility.md"
_LINES: Final = re.compile(r"^\| (?!dstack \|)(.+?) \| (.+?) \| (.+?) \| (.*) \|$", re.MULTILINE)
_HOW: Final = ("served", "simulated", "verified", "refused", "left out", "client", "read")

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="docs/compatibility.md is not here")


def test_every_line_has_tests_that_exist() -> None:
    """What is served, verified, or left out is shown by tests."""
    section = PAGE.read_text().partition("\n## dstack 0.5 and 0.6\n")[2].partition("\n## ")[0]
    lines = _LINES.findall(section)
    assert len(lines) == section.count("\n| ") - section.count("\n| dstack |") > 40
    for release, what, how, tests in lines:
        assert re.fullmatch(r"none|Aug\. 2026|0\.[356](, 0\.6| to 0\.6)?", release), what
        assert how.startswith(_HOW), what
        named = NODE.findall(tests)
        assert len(named) == tests.count("`") // 2 > 0, what
        for file, name, _ in named:
            assert name in read_tests(file), f"{what}: {file}::{name}"


def test_client_releases_are_those_of_the_matrix() -> None:
    """The table has the releases that noxfile.py runs."""
    text, noxfile = PAGE.read_text(), (ROOT / "noxfile.py").read_text()
    for row, constant in (("dstack-sdk (Python)", "PYTHON_CLIENTS"), ("@phala", "JS_CLIENTS")):
        [releases] = re.findall(rf"^{constant}: Final = \((.+)\)$", noxfile, re.MULTILINE)
        [cell] = re.findall(rf"^\| {re.escape(row)}.*? \| (.+?) \|", text, re.MULTILINE)
        assert cell.split(", ") == re.findall(r"[\d.]+", releases)
