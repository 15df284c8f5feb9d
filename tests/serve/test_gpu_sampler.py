"""Sampling of the machine's GPUs: from the simulation, NVIDIA's driver, or neither."""

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendBusyError, BackendError, BackendUnavailableError
from attestkit.gpu.driver import nvml as telemetry
from attestkit.gpu.driver.nvml import GpuTelemetry, MachineTelemetry
from attestkit.serve import machine_info as gpu_sampler
from attestkit.serve.machine_info import GpuSample, GpuSampler

FOUND = MachineTelemetry((GpuTelemetry(0, "GPU-0"),), enabled=True, ready=False)
MISSING = BackendUnavailableError("libnvidia-ml.so.1: not found", reason="missing")


class Driver:
    """A driver whose results a test chooses, and which counts readings."""

    def __init__(self) -> None:
        self.result: MachineTelemetry | BackendError = FOUND
        self.readings = 0
        self.may_end = threading.Event()
        self.may_end.set()

    def read(self) -> MachineTelemetry:
        """Return or raise the result."""
        self.readings += 1
        assert self.may_end.wait(30)
        if isinstance(self.result, BackendError):
            raise self.result
        return self.result


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Replace the driver of this machine, which has none."""
    driver = Driver()
    monkeypatch.setattr(telemetry, "read_telemetry", driver.read)
    yield driver
    driver.may_end.set()


def sampler(on_bus: bool | None = False) -> GpuSampler:
    """Return a sampler of hardware."""
    return GpuSampler(object(), simulated=False, on_bus=lambda: on_bus)


def sample(found: GpuSampler) -> GpuSample | None:
    """Return a sample, waiting for it."""
    return asyncio.run(found.sample())


def test_sample_of_hardware_has_the_values_of_the_driver(driver: Driver) -> None:
    """GPUs and state are those of the driver."""
    found = sample(sampler())
    assert found is not None
    assert found[1:] == (FOUND.gpus, True, False, "")
    assert 0 <= found.age < 30
    assert driver.readings == 1


@pytest.mark.parametrize(
    ("error", "on_bus", "is_absent"),
    [
        (MISSING, False, True),
        (MISSING, True, False),
        (MISSING, None, False),
        (BackendUnavailableError("x", reason="missing_dependency"), False, True),
        (BackendUnavailableError("x", reason="permission_denied"), False, False),
        (BackendBusyError("x", reason="timed_out"), False, False),
        (BackendError("x", reason="gpu_error"), False, False),
    ],
)
def test_sample_without_values_is_absence_or_error(
    driver: Driver,
    error: BackendError,
    on_bus: bool | None,
    is_absent: bool,
) -> None:
    """A missing driver is absence of GPUs only if the bus has none; all else is an error."""
    driver.result = error
    found = sample(sampler(on_bus))
    assert (found is None) is is_absent
    if found is not None:
        assert (found.error, found.gpus, found.enabled) == (str(error), (), None)


def test_sample_is_kept_for_a_second(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any client may request the metrics, so the driver is read once a second at most."""
    clock: list[float] = [100.0]
    monkeypatch.setattr(gpu_sampler, "_clock", lambda: clock[0])
    found = sampler()
    first = sample(found)
    clock[0] += 0.9
    assert sample(found) is first
    assert first is not None
    assert first.age == pytest.approx(0.9)
    clock[0] += 0.2
    assert sample(found) is not first
    assert driver.readings == 2


def test_absence_is_kept_too(driver: Driver) -> None:
    """Without GPUs the driver is not searched for at each request."""
    driver.result = MISSING
    found = sampler()
    assert [sample(found), sample(found)] == [None, None]
    assert driver.readings == 1


def test_sample_while_the_driver_is_read(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scrape gets the previous values if the driver is slow, and starts no second reading."""
    monkeypatch.setattr(gpu_sampler, "_MAX_AGE", -1.0)

    async def run(found: GpuSampler) -> None:
        before = await found.sample()
        driver.may_end.clear()
        assert await found.sample(wait=0.01) is before
        assert await found.sample(wait=0.01) is before
        assert await found.sample() is before
        assert driver.readings == 2
        driver.may_end.set()

    asyncio.run(run(sampler()))


def test_first_sample_of_slow_driver(driver: Driver) -> None:
    """Before the first values a scrape has none; GpuInfo waits for them."""

    async def run(found: GpuSampler) -> None:
        driver.may_end.clear()
        assert await found.sample(wait=0.01) is None
        waiting = asyncio.ensure_future(found.sample())
        driver.may_end.set()
        assert await waiting is not None
        assert driver.readings == 1

    asyncio.run(run(sampler()))


@pytest.mark.parametrize("make", [Simulator, object])
def test_sample_of_simulator_does_not_read_the_driver(
    driver: Driver, make: Callable[[], object]
) -> None:
    """A simulator without GPUs has none, whatever this machine has."""
    assert sample(GpuSampler(make(), simulated=True)) is None
    found = sample(GpuSampler(Simulator(gpus=2), simulated=True))
    assert found is not None
    assert [gpu.temperature for gpu in found.gpus] == [30, 30]
    assert (found.enabled, found.ready) == (True, True)
    assert driver.readings == 0
