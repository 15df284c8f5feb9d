"""What the benchmarks share: the ledger of results, and the verdicts at the end of a run."""

from pathlib import Path

import pytest

from attestkit.cli.commands.bench import host_facts
from benchmarks.compare import verdict_lines
from benchmarks.racing import Ledger
from benchmarks.results import machine_facts, save
from benchmarks.samples import samples
from benchmarks.targets import targets_on

LEDGER = pytest.StashKey[Ledger]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the file of results."""
    parser.addoption("--results", metavar="FILE", help="write what was measured to FILE, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Open the ledger."""
    config.stash[LEDGER] = Ledger()


@pytest.fixture(scope="session")
def ledger(pytestconfig: pytest.Config) -> Ledger:
    """Where results go."""
    return pytestconfig.stash[LEDGER]


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    """Whether to see that everything works, and to measure nothing: `--benchmark-disable`."""
    return bool(pytestconfig.getoption("benchmark_disable"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the file of results, if one is wanted and anything was measured."""
    path = session.config.getoption("--results")
    found = session.config.stash[LEDGER].results
    if path and found:
        facts = machine_facts() | {"samples": samples().origin}
        save(Path(path), facts, found.values())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print what this run found of the targets."""
    if found := config.stash[LEDGER].results:
        terminalreporter.section("targets")
        for line in verdict_lines(targets_on(host_facts()["kernels"]), found):
            terminalreporter.line(line)
