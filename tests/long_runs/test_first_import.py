"""Tests of the division of the first import of the tests among pytest-xdist's processes."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.long_runs.records import ROOT
from tests.runner import first_import
from tests.runner.first_import import find_modules, import_share
from tests.untyped import untyped

NAMES = ("test_one", "test_two", "test_three", "test_wrong", "test_left")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with five test modules; one cannot be imported, one skips itself."""
    folder = tmp_path / "first_import_tests"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text("")
    (folder / "test_wrong.py").write_text("raise ValueError")
    (folder / "test_left.py").write_text("import pytest\npytest.skip(allow_module_level=True)")
    monkeypatch.setattr(first_import, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def imported(folder: Path, number: int) -> set[str]:
    """Return the test modules that one of three processes imports."""
    process = {"workerid": f"gw{number}", "workercount": 3}
    import_share(untyped(SimpleNamespace(workerinput=process, args=[str(folder)])))
    return {name for name in NAMES if sys.modules.pop(f"{folder.name}.{name}", None)}


def test_processes_import_different_modules(project: Path) -> None:
    """Each module is one process's; one that fails or skips is left to the collection."""
    shares = [imported(project, number) for number in range(3)]
    assert sorted(name for share in shares for name in share) == [
        "test_one",
        "test_three",
        "test_two",
    ]
    assert len([share for share in shares if share]) >= 2


def test_compiled_modules_are_not_imported(project: Path) -> None:
    """A module that pytest has compiled is left to the collection."""
    cache = project / "__pycache__"
    cache.mkdir(exist_ok=True)
    for name in NAMES:
        (cache / f"{name}.cpython-311-pytest-9.0.0.pyc").touch()
    assert [imported(project, number) for number in range(3)] == [set()] * 3


def test_modules_that_are_not_collected_are_left_out() -> None:
    """Neither another project's tests nor those of the virtual machine are imported here."""
    found = {file.relative_to(ROOT).as_posix() for file in find_modules([str(ROOT / "tests")])}
    assert "tests/test_sanitize.py" in found
    assert not any(name.startswith(first_import.LEFT_OUT) for name in found)
    assert find_modules(["/", str(ROOT / "tests" / "test_sanitize.py")]) == []
