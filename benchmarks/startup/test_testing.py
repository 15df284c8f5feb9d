"""What the fixture `tee` costs a test, in test runs of their own, and what runs without it pay.

The first one of a run brings its imports, whose compiled form is there as after an installation.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from typing import Any, Final

import pytest

from benchmarks.cases import OURS
from benchmarks.racing import Ledger
from benchmarks.results import Result

ROOT: Final = Path(__file__).resolve().parents[2]
ROUNDS: Final = 15
PLUGIN: Final = ("-p", "attestkit.testing.plugin")
CONFTEST: Final = """
import json, time
import pytest

TIMES = []

@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    begin, worked = time.perf_counter(), time.process_time()
    yield
    TIMES.append((time.perf_counter() - begin, time.process_time() - worked))

def pytest_sessionfinish():
    with open("times.json", "w") as file:
        json.dump(TIMES, file)
"""
TESTS: Final = """
import pytest

@pytest.mark.parametrize("number", range(50))
def test_tee(tee, number):
    pass

@pytest.fixture
def server(tee):
    return tee.url

@pytest.mark.parametrize("number", range(20))
def test_server(server, number):
    pass
"""


def _pytest(folder: Path, *options: str) -> float:
    """Run pytest in a folder; return the seconds that it had of a processor."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PY")}
    environ |= {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
        "PYTHONPYCACHEPREFIX": str(folder / "compiled"),
    }
    before = _processor()
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=environ,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return _processor() - before


def _processor() -> float:
    """Return the processor's seconds that ended children had."""
    used = getrusage(RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _times(folder: Path) -> list[tuple[float, float]]:
    """Return the seconds of each test's setup: by the clock, and of a processor."""
    _pytest(folder, *PLUGIN)
    found: list[Any] = json.loads((folder / "times.json").read_text())
    return [(wall, worked) for wall, worked in found]


def test_tee(tmp_path: Path, ledger: Ledger, *, quick: bool) -> None:
    """The first of a run, the next ones, and the server that starts with the first who asks."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    _times(tmp_path)  # has its files compiled and read
    runs = [_times(tmp_path) for _ in range(1 if quick else ROUNDS)]
    if quick:
        return
    rows = {
        "tee-first": ("fixture tee: the first of a run, imports included", slice(1)),
        "tee-next": ("fixture tee: each next one", slice(1, 50)),
        "tee-server": ("fixture tee: its server, the first of a run", slice(50, 51)),
        "tee-server-next": ("fixture tee: its server, each next one", slice(51, None)),
    }
    for row, (what, part) in rows.items():
        times = [median(time[0] for time in run[part]) for run in runs]
        work = median(median(time[1] for time in run[part]) for run in runs) * 1000
        figure = median(times)
        note = f"{work:.1f} ms of work"
        ledger.add(Result(row, what, "s", {OURS: figure}, {}, figure * 1000, note))


def test_runs_without(tmp_path: Path, ledger: Ledger, *, quick: bool) -> None:
    """A test run that uses nothing of it, with the plugin and without, in turns."""
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    (tmp_path / "empty.py").write_text("")  # pytest looks for what -p names in every distribution
    empty = ("-p", "empty")
    for options in (PLUGIN, empty):
        _pytest(tmp_path, *options)
    took = [
        (_pytest(tmp_path, "--co", *PLUGIN), _pytest(tmp_path, "--co", *empty))
        for _ in range(1 if quick else ROUNDS)
    ]
    if quick:
        return
    values = {
        OURS: median(ours for ours, _ in took),
        "an empty plugin": median(bare for _, bare in took),
    }
    more = median(ours - bare for ours, bare in took) * 1000
    what = "fixture tee: pytest --co, work of who does not use it"
    ledger.add(Result("co", what, "s", values, {}, more, f"{more:.1f} ms of work more"))


@pytest.fixture(autouse=True)
def _no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
