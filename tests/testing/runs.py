"""Nested test runs with the plugin, which must leave no resources."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Remaining threads, sockets and children after the run, and the modules that it loads.
CONFTEST = """
import gc, os, sys, threading
from pathlib import Path

def pytest_unconfigure(config):
    gc.collect()
    threads = [thread.name for thread in threading.enumerate()][1:]
    sockets = [name for name in map(os.readlink, open_files()) if name.startswith("socket:")]
    print(f"left: {threads} {sockets}", file=sys.__stderr__)

def open_files():
    for path in Path("/proc/self/fd").iterdir():
        try:
            os.readlink(path)
        except OSError:
            continue
        yield path
"""


class Runs:
    """Runs pytest with the plugin, and other plugins that are named."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester = pytester
        self.setenv = monkeypatch.setenv
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
        for name in ("DSTACK_SIMULATOR_ENDPOINT", "TAPPD_SIMULATOR_ENDPOINT", "PCCS_URL"):
            monkeypatch.delenv(name, raising=False)
        pytester.makeconftest(CONFTEST)

    def __call__(self, text: str, *options: str, left: bool = True) -> pytest.RunResult:
        """Run tests with warnings as errors; `left`: assert that no resources are left."""
        self.pytester.makepyfile(text)
        plugins = ("-p", "attestkit.testing.plugin", "-p", "no:cacheprovider")
        result = self.pytester.runpytest_subprocess(*plugins, "-W", "error", *options, timeout=120)
        if left:
            assert "left: [] []" in result.stderr.str()
        return result


@pytest.fixture
def runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Return the runner of nested test runs."""
    return Runs(pytester, monkeypatch)
