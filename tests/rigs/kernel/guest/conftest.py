"""Fixtures of the guest's tests, and the transfer of their outcomes to the host."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit.backends.simulator.boot_log import boot_log
from attestkit.backends.simulator.images.os_image import simulated_image
from tests.rigs.kernel.guest.machine import SHARE, SimulatedSnp, SimulatedTd, list_entries

OUTCOMES = SHARE / "outcomes"


# -- outcomes --------------------------------------------------------------------------------------


def _write_outcome(name: str, outcome: str, text: str, seconds: float) -> None:
    line = json.dumps({"name": name, "outcome": outcome, "text": text, "seconds": seconds})
    with OUTCOMES.open("a") as file:
        file.write(f"{line}\n")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return a traceback, or the reason of a skip."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    sections = [f"{title}\n{content}" for title, content in report.sections]
    return "\n".join((report.longreprtext, *sections))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write the outcome of a test, and of its setup or teardown if that fails."""
    if report.when == "call" or report.outcome != "passed":
        name = report.nodeid.rpartition("/")[2]
        name = name if report.when == "call" or report.skipped else f"{name} ({report.when})"
        _write_outcome(name, report.outcome, _reason(report), report.duration)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Write the error of a file that cannot be collected."""
    if report.failed:
        _write_outcome(f"{report.nodeid} (collection)", report.outcome, _reason(report), 0)


# -- fixtures --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def firmware_log() -> Path:
    """Return the firmware's log as a file, since the machine's ACPI has none."""
    path = Path("/run/ccel")
    path.write_bytes(boot_log(simulated_image()))
    return path


@pytest.fixture
def td_without_qgs(monkeypatch: pytest.MonkeyPatch, firmware_log: Path) -> Iterator[SimulatedTd]:
    """Return a freshly booted TD with its driver, on a host without a QGS."""
    monkeypatch.setenv("DSTACK_CCEL_FILE", str(firmware_log))
    machine = SimulatedTd()
    try:
        machine.boot()
        yield machine
        assert not list_entries()
    finally:
        machine.halt()


@pytest.fixture
def td(td_without_qgs: SimulatedTd) -> SimulatedTd:
    """Return a freshly booted TD with its driver, on a host with a QGS."""
    td_without_qgs.start_service()
    return td_without_qgs


@pytest.fixture
def snp() -> Iterator[SimulatedSnp]:
    """Return an SEV-SNP guest, which the test boots."""
    machine = SimulatedSnp()
    try:
        yield machine
        assert not list_entries()
    finally:
        machine.halt()
