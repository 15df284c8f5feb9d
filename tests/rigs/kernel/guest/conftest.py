"""Fixtures of the guest's tests, and the way their outcomes go to the host."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit.backends.simulator.boot_log import boot_log
from attestkit.backends.simulator.os_image import simulated_image
from tests.rigs.kernel.guest.machine import SHARE, MadeUpSnp, MadeUpTd, entries

OUTCOMES = SHARE / "outcomes"


# -- outcomes --------------------------------------------------------------------------------------


def _tell(name: str, outcome: str, text: str, seconds: float) -> None:
    line = json.dumps({"name": name, "outcome": outcome, "text": text, "seconds": seconds})
    with OUTCOMES.open("a") as file:
        file.write(f"{line}\n")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return a traceback, or a skip's reason."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    sections = [f"{title}\n{content}" for title, content in report.sections]
    return "\n".join((report.longreprtext, *sections))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down what became of a test, and of what is around it where that fails."""
    if report.when == "call" or report.outcome != "passed":
        name = report.nodeid.rpartition("/")[2]
        name = name if report.when == "call" or report.skipped else f"{name} ({report.when})"
        _tell(name, report.outcome, _reason(report), report.duration)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Write down a file that cannot be collected."""
    if report.failed:
        _tell(f"{report.nodeid} (collection)", report.outcome, _reason(report), 0)


# -- fixtures --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def firmware_log() -> Path:
    """Return the firmware's log as a file, because this machine's ACPI has none."""
    path = Path("/run/ccel")
    path.write_bytes(boot_log(simulated_image()))
    return path


@pytest.fixture
def lonely_td(monkeypatch: pytest.MonkeyPatch, firmware_log: Path) -> Iterator[MadeUpTd]:
    """Return a TD that has just booted, with its driver, on a host without a quoting service."""
    monkeypatch.setenv("DSTACK_CCEL_FILE", str(firmware_log))
    machine = MadeUpTd()
    try:
        machine.boot()
        yield machine
        assert not entries()
    finally:
        machine.halt()


@pytest.fixture
def td(lonely_td: MadeUpTd) -> MadeUpTd:
    """Return a TD that has just booted, with its driver, on a host with a quoting service."""
    lonely_td.start_service()
    return lonely_td


@pytest.fixture
def snp() -> Iterator[MadeUpSnp]:
    """Return an SEV-SNP guest that a test has to boot."""
    machine = MadeUpSnp()
    try:
        yield machine
        assert not entries()
    finally:
        machine.halt()
