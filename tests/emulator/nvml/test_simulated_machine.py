"""Simulated GPUs behind the stub driver: what programs collect is the simulator's evidence."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.cli.options.option_files import parse_gpu_roots
from attestkit.emulator.kernel_files import Link
from attestkit.emulator.machine import Machine, Setup
from attestkit.emulator.nvml.simulated_machine import SimulatedStubMachine
from attestkit.emulator.nvml.stub_server import StubState
from attestkit.gpu import GpuEndorsements, GpuEvidence, Report
from tests.backends.simulator.simulated_cases import NOW
from tests.emulator.nvml.stub_programs import (
    NONCE,
    Driver,
    requires_binding,
    requires_compiler,
    running,
)
from tests.emulator.test_machine_scenarios import read_file

SEED = bytes(32)
COLLECT = f"collection.collect({NONCE!r}).to_json()"

pytestmark = [requires_binding, requires_compiler]


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    """A driver whose machine each test sets."""
    with running() as driver:
        yield driver


def collect(driver: Driver, simulated: SimulatedGpus) -> GpuEvidence:
    """Return the evidence that a program collects on a machine with these devices."""
    protected = simulated.config.is_protected
    state = StubState(multi_gpu=1, feature=0) if protected else StubState()
    driver.reset(SimulatedStubMachine(simulated), state)
    return GpuEvidence.from_json(driver.evaluate(COLLECT))


@pytest.mark.parametrize(
    "config",
    [
        GpuConfig(1),
        GpuConfig(2, architecture="BLACKWELL"),
        GpuConfig(8),
        GpuConfig(fault="fwid-absent"),
        GpuConfig(fault="switch-missing"),
    ],
    ids=["one", "blackwell", "protected", "fault", "switch-missing"],
)
def test_collected_evidence_is_that_of_the_simulator(driver: Driver, config: GpuConfig) -> None:
    """Reports, certificates and architectures are equal; signatures are functions of the nonce."""
    simulated = SimulatedGpus(SEED, config)
    collected, expected = collect(driver, simulated), simulated.evidence(NONCE)
    assert collected.devices == expected.devices


def test_machine_has_files_of_its_gpus() -> None:
    """Roots, current endorsements, and a link to the driver, which runs until the end."""
    with tempfile.TemporaryDirectory(prefix="stub-") as folder:
        scenario = Scenario(gpu_fault="fwid-absent")
        made = Machine(
            Setup(scenario=scenario),
            SEED,
            faults=Faults(),
            now=lambda: NOW,
            clock=time.monotonic,
            wait=lambda _: True,
        )
        made.start_gpu_driver(folder)
        assert Path(folder, "socket").is_socket()
        made.close()
        assert not Path(folder, "socket").exists()
        simulated = SimulatedGpus(SEED, GpuConfig(fault="fwid-absent"))
        link = made.tree.find("/attestkit/gpu-driver")
        assert isinstance(link, Link)
        assert link.target == folder
        assert parse_gpu_roots(read_file(made, "/attestkit/gpu-roots.pem")) == simulated.roots
        found = GpuEndorsements.from_json(read_file(made, "/attestkit/gpu-endorsements.json"))
        assert dict(found.rims) == dict(simulated.rims)
        assert found.ocsp == simulated.ocsp_answers(NOW)


def test_collected_evidence_of_device_twice_has_a_device_twice(driver: Driver) -> None:
    """The last GPU is the first one again."""
    simulated = SimulatedGpus(SEED, GpuConfig(2, fault="device-twice"))
    first, second = collect(driver, simulated).devices
    assert first == second


def test_collected_report_has_versions_of_the_driver(driver: Driver) -> None:
    """Version of the driver, VBIOS and UUID in NVML are those of the report."""
    simulated = SimulatedGpus(SEED, 2)
    report = Report.parse(collect(driver, simulated).devices[1].report)
    gpus = "[(g.uuid, g.vbios_version) for g in c.gpus]"
    found = driver.evaluate(
        f"[({gpus}, c.driver_version) for c in [collection.collect_with_state({NONCE!r})]][0]"
    )
    assert found[0] == [(gpu.uuid, report.vbios_version.lower()) for gpu in simulated.gpus]
    assert found[1] == report.driver_version
