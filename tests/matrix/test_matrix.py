"""docs/compatibility.md matches the record of the matrix and the allowed versions."""

import json
from typing import Any, Final

import pytest

from tests.matrix import cells, environments, extras, suites
from tests.matrix.page import PAGE, RECORD, page
from tests.records import ROOT

NAMED: Final = {"dstack-sdk": "0.5.0", "@phala/dstack-sdk": "0.5.5"}


@pytest.fixture(scope="module")
def record() -> Any:
    """The record of the last full run."""
    return json.loads(RECORD.read_text())


def test_page_matches_record(record: Any) -> None:
    """The page is the generated one, without manual edits."""
    assert PAGE.read_text() == page(record)


def test_allowed_versions_were_run(record: Any) -> None:
    """The recorded ranges are pyproject.toml's; each has its cells, and tests that use it."""
    ranges = suites.ranges()
    assert record["ranges"] == {each.name: each.requirement for each in ranges}
    assert set(suites.SUITES) == set(record["ranges"])
    oldest = {(c["name"], c["python"]) for c in record["cells"] if c["group"] == "oldest"}
    assert oldest == {
        (each.name, python) for each in ranges for python in cells.ENDS if each.needed_by(python)
    }


def test_every_cell_is_recorded(record: Any) -> None:
    """No cell is missing because it failed or could not be installed, and none failed."""
    wanted = {(c.group, c.name, c.python) for c in cells.cells(record["releases"])}
    assert {(c["group"], c["name"], c["python"]) for c in record["cells"]} == wanted
    assert len(record["cells"]) == len(wanted)
    assert [cell for cell in record["cells"] if cell.get("failed")] == []
    assert all(cell.get("not_run") or cell["passed"] for cell in record["cells"])


def test_pinned_clients_are_the_newest(record: Any) -> None:
    """Clients range from the first supported release to the one pinned in tests/clients."""
    manifest = json.loads((ROOT / "tests/clients/js/package.json").read_text())
    pinned = {
        "dstack-sdk": _pinned("dstack-sdk=="),
        "@phala/dstack-sdk": manifest["dependencies"]["@phala/dstack-sdk"],
    }
    for name, first in NAMED.items():
        assert record["releases"][name][0] == first
        assert record["releases"][name][-1] == pinned[name]


def test_suites_and_extras_exist() -> None:
    """The test files exist, and the extras are those of pyproject.toml."""
    paths = [path for each in suites.SUITES.values() for path in each] + list(suites.CORE)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert {each.extra for each in suites.ranges()} == {"", *extras.EXTRAS}
    assert set(environments.PYTHONS) == set(_pythons())


def _pinned(start: str) -> str:
    [line] = (line for line in _pyproject() if line.startswith(f'"{start}'))
    return line.removeprefix(f'"{start}').partition('"')[0]


def _pythons() -> list[str]:
    start = '"Programming Language :: Python :: 3.'
    return [line.split()[-1].strip('",') for line in _pyproject() if line.startswith(start)]


def _pyproject() -> list[str]:
    return [line.strip() for line in (ROOT / "pyproject.toml").read_text().splitlines()]
