"""The end of a test that hangs, and the files with slow tests."""

import sys
from pathlib import Path

import pytest

from tests.conftest import SLOW
from tests.long_runs.records import ROOT
from tests.processes import run_program

HANGS = """
import threading

def test_quick():
    pass

def test_hangs():
    threading.Event().wait()
"""


@pytest.mark.slow
def test_hanging_test_ends_the_run(tmp_path: Path) -> None:
    """The process ends after the time limit, and prints where the test hangs."""
    (tmp_path / "conftest.py").write_text(
        "from tests import conftest\nconftest.HANG = 2.0\npytest_plugins = ['tests.conftest']\n"
    )
    (tmp_path / "test_it.py").write_text(HANGS)
    words = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", "/dev/null")
    done = run_program(
        *words, f"--rootdir={tmp_path}", "-o", f"pythonpath={ROOT}", tmp_path, cwd=tmp_path
    )
    assert done.returncode == 1
    assert "Timeout (0:00:02)!" in done.stderr
    assert "in test_hangs" in done.stderr


def test_slow_tests_are_marked_in_their_file() -> None:
    """`-m slow` finds all: no other module marks them, but for the helpers of `tests.thorough`."""
    others = (path for path in (ROOT / "tests").rglob("*.py") if not path.match("test_*.py"))
    marking = {path for path in others if "mark.slow" in path.read_text(encoding="utf-8")}
    assert marking == {ROOT / "tests/thorough.py"}
    assert all(map(SLOW.search, ("@pytest.mark.slow", "*slow((1,))", "@thorough(few=1, many=2)")))
