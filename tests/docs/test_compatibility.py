"""Tested versions: each line about dstack names its tests, and the matrix has the clients."""

import json
import re
from typing import Final

import pytest

from tests.docs.promises import NODE, ROOT, read_tests

PAGE: Final = ROOT / "docs/project/compatibility.md"
_LINES: Final = re.compile(r"^\| (?!dstack \|)(.+?) \| (.+?) \| (.+?) \| (.*) \|$", re.MULTILINE)
_CLIENTS: Final = ("dstack_sdk", "dstack_sdk_js", "dstack_v1", "own_client")  # columns
_HOW: Final = ("served", "simulated", "verified", "refused", "left out", "client", "read")

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason=f"{PAGE} is not here")


def test_every_line_has_tests_that_exist() -> None:
    """Each line names tests that show whether a feature is served, verified, or left out."""
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


def test_apis_and_clients_are_those_of_the_record() -> None:
    """The table has each client and release that ran on a path of the API, and no other."""
    sessions = json.loads((ROOT / "docs/records/matrix.json").read_text())["sessions"]
    found = {
        path: cells.split(" | ")
        for path, cells in re.findall(
            r"^\| (?:Tappd|v\d) \| `(.+?)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE
        )
    }
    assert found.keys() == {one["args"]["api"] for one in sessions if "api" in one["args"]}
    for path, cells in found.items():
        for client, cell in zip(_CLIENTS, cells, strict=True):
            ran = [
                one["args"].get("release", "tested")
                for one in sessions
                if (one["name"], one["args"].get("api")) == (client, path)
            ]
            assert cell == (", ".join(ran) or "-"), (path, client)
