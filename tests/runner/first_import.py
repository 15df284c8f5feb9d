"""Division of the first import of the tests among pytest-xdist's processes.

In a new checkout each process would compile all test modules, and rewrite their assertions, which
takes 16 s of CPU. All processes collect the same modules in the same order, so none profits from
what another one has just compiled. Here each imports a different share first, and then finds the
compiled modules of the others.
"""

import importlib
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import strategies as st

from tests.untyped import untyped

__all__ = ["import_share"]

ROOT: Final = Path(__file__).resolve().parents[2]

LEFT_OUT: Final = ("tests/sample_project/", "tests/rigs/kernel/guest/")
"""Folders that are not collected: one is a project of its own, one is for a virtual machine."""


def import_share(config: pytest.Config) -> None:
    """Import those test modules that are not compiled yet and are this process's share.

    An error is left to the collection, which imports the module again and reports it.
    """
    if sys.dont_write_bytecode:
        return
    process: dict[str, Any] = untyped(config).workerinput  # set by pytest-xdist
    number, count = int(process["workerid"].removeprefix("gw")), process["workercount"]
    share = [file for file in find_modules(config.args)[number::count] if not is_compiled(file)]
    if share and number == 0:
        st.text().validate()  # Hypothesis takes 2 s for a table of characters, kept in a file
    for file in share:
        with suppress(Exception, pytest.skip.Exception):
            name = file.relative_to(ROOT).as_posix().removesuffix(".py").replace("/", ".")
            importlib.import_module(name)


def find_modules(arguments: list[str]) -> list[Path]:
    """Return the test modules in the folders among these arguments, except for those in packages.

    In a package pytest imports a module by another name.
    """
    folders = [Path(argument).resolve() for argument in arguments]
    found = {
        file
        for folder in folders
        if folder.is_relative_to(ROOT)
        for file in folder.rglob("test_*.py")
        if not (file.parent / "__init__.py").exists()
    }
    left_out = tuple(str(ROOT / name) for name in LEFT_OUT)
    return sorted(file for file in found if not str(file).startswith(left_out))


def is_compiled(file: Path) -> bool:
    """Return whether pytest has compiled a test module, in this or in an earlier version of it."""
    return any((file.parent / "__pycache__").glob(f"{file.stem}.*-pytest-*.pyc"))
