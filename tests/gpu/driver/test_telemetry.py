"""Telemetry of GPUs through NVIDIA's nvidia-ml-py over the stub driver."""

import pytest

from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.backends.simulator.gpu.simulated_gpus import SimulatedGpus
from attestkit.emulator.nvml.simulated_machine import SimulatedStubMachine
from attestkit.emulator.nvml.stub_server import StubCall
from tests.emulator.nvml.stub_programs import (
    Driver,
    FakeMachine,
    requires_binding,
    requires_compiler,
)

pytestmark = [requires_binding, requires_compiler]

READ = "nvml.read_telemetry()"
GPU_0 = "GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
GPU_1 = "GPU-10111213-1415-1617-1819-1a1b1c1d1e1f"


def read(driver: Driver) -> tuple[list[tuple[object, ...]], bool | None, bool | None]:
    """Return each GPU's values, and whether confidential computing is enabled and ready."""
    gpus, enabled, ready = driver.evaluate(
        f"(lambda found: ([tuple(gpu) for gpu in found.gpus], *found[1:]))({READ})"
    )
    return gpus, enabled, ready


def test_read_telemetry_returns_values_of_all_gpus(driver: Driver) -> None:
    """Values and state are those of the driver."""
    memory = (80 << 30, 30 << 30, 50 << 30)
    assert read(driver) == (
        [
            (0, GPU_0, "00000000:0A:00.0", (91, 17), memory, 61, 350_125, ()),
            (1, GPU_1, "", (0, 0), (0, 0, 0), 0, 0, ()),
        ],
        True,
        False,
    )
    driver.state.ready = 1
    assert read(driver)[1:] == (True, True)


def test_read_telemetry_in_protected_pcie_mode_is_enabled(driver: Driver) -> None:
    """Protected PCIe counts as enabled, as for the collection of evidence; off does not."""
    driver.state.feature = 0
    assert read(driver)[1] is False
    driver.state.multi_gpu = 1
    assert read(driver)[1] is True


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (StubCall.DEVICE_UUID, 1),
        (StubCall.DEVICE_PCI_BUS_ID, 2),
        (StubCall.DEVICE_UTILIZATION, 3),
        (StubCall.DEVICE_MEMORY, 4),
        (StubCall.DEVICE_TEMPERATURE, 5),
        (StubCall.DEVICE_POWER_USAGE, 6),
    ],
)
def test_read_telemetry_lists_value_that_is_not_supported(
    driver: Driver, call: StubCall, field: int
) -> None:
    """A value that the GPU does not have is missing, with its error; the others are there."""
    complete = read(driver)[0][0]
    driver.state.codes[call] = 3
    found = read(driver)[0][0]
    assert not found[field]
    assert [at for at in range(7) if found[at] != complete[at]] == [field]
    text = str(found[7])  # a tuple of one
    assert text.startswith(("('GPU 0: ", '("GPU 0: '))
    assert text.count("(NVML error 3)") == 1


def test_read_telemetry_of_old_gpu_has_no_state(driver: Driver) -> None:
    """GPUs older than Hopper have values; whether they are confidential is unknown."""
    driver.reset(FakeMachine(gpus=FakeMachine().gpus[:1]))
    driver.state.codes[StubCall.CC_CAPABILITIES] = 3
    gpus, *state = read(driver)
    assert (len(gpus), state) == (1, [None, None])


def test_read_telemetry_without_driver_or_with_hanging_one_is_refused(driver: Driver) -> None:
    """Errors of the whole driver are raised; a hanging call ends the reading."""
    driver.state.codes[StubCall.INIT] = 9
    assert driver.evaluate(READ) == ("BackendUnavailableError", "missing")
    driver.state.codes.clear()
    driver.state.codes[StubCall.DEVICE_TEMPERATURE] = 10
    assert driver.evaluate(READ) == ("BackendBusyError", "timed_out")


def test_simulated_gpus_have_the_same_values_through_the_driver(driver: Driver) -> None:
    """The stub driver of a simulated machine returns the simulation's telemetry."""
    simulated = SimulatedGpus(b"\x27" * 32, GpuConfig(2))
    driver.reset(SimulatedStubMachine(simulated))
    assert read(driver)[0] == [tuple(gpu.telemetry) for gpu in simulated.gpus]
